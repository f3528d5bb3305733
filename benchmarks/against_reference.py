"""How much faster the cpu back end is than the NumPy reference: prefill of 512 tokens, decode at context 128.

python benchmarks/against_reference.py FILE.gguf [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from kvern.assembly.device_options import DeviceOptions
from kvern.assembly.model import make_device, open_model
from kvern.runtime.device import Device, StepBatch
from kvern.weights.hub import resolve

PROMPT, CONTEXT, DECODED, PAGES = 512, 128, 8, 16


def step(device: Device, tokens: np.ndarray, position: int) -> None:
    rows = len(tokens)
    device.step(
        StepBatch(
            tokens=tokens.astype(np.int32),
            positions=np.arange(position, position + rows, dtype=np.int32),
            row_begin=np.array([0, rows], np.int32),
            unit_begin=np.zeros(1, np.int32),
            unit_end=np.array([device.units], np.int32),
            block_table=np.arange(PAGES, dtype=np.int32)[None],
            hidden=np.zeros((rows, device.hidden_size), np.float32),
            logit_rows=np.array([rows - 1], np.int32),
            stop=np.zeros(1, np.uint8),
        )
    )


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def speeds(path: str, backend: str, threads: int) -> tuple[float, float]:
    """(prefill, decode) in tokens per second, medians of three."""
    options = DeviceOptions(backend=backend, pages=PAGES, threads=threads, max_rows=PROMPT)
    model = open_model(path)
    device = make_device(model, options)
    prompt = np.random.default_rng(0).integers(0, device.vocab_size, PROMPT)

    def decode() -> None:
        for i in range(DECODED):
            step(device, prompt[:1], CONTEXT + i)

    step(device, prompt, 0)
    prefill = [PROMPT / seconds(lambda: step(device, prompt, 0)) for _ in range(3)]
    decoded = [DECODED / seconds(decode) for _ in range(3)]
    return statistics.median(prefill), statistics.median(decoded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    path = str(resolve(arguments.model))
    ours, reference = (speeds(path, backend, arguments.threads) for backend in ("cpu", "reference"))
    for name, fast, slow in zip(("prefill 512", "decode at 128"), ours, reference, strict=True):
        print(f"{name}: cpu {fast:.0f} tokens/s, reference {slow:.1f}, ratio {fast / slow:.1f}")


if __name__ == "__main__":
    main()
