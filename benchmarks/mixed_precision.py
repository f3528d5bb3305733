"""Does the inter-layer-augmented order of mixed precision save bits? It, the Hessian's and random order compared.

    python benchmarks/mixed_precision.py --model smollm2 --target-kl 0.02

For each order the longest prefixes that keep the mean KL at the target go to 8 and to 4 bits (kvern.quantise.search);
printed are the mean bits per weight of the linear matrices. The loss of a choice is measured by the cpu back end on
one calibration text, the one that sensitivities are measured on. Some minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from kvern.assembly.mixed import LADDER, SEARCH_TOKENS, Candidates, SwapLoss, candidates, neighbours, sensitivities
from kvern.assembly.model import open_model
from kvern.assembly.quantiser import QuantiseOptions, calibration_windows
from kvern.quantise import search
from kvern.weights.hub import resolve


def say(what: str, done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"  {what} {done}/{total}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--target-kl", type=float, default=0.02)
    parser.add_argument("--calibration", type=Path, help="a text file; default: text that the model writes")
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--search-tokens", type=int, default=SEARCH_TOKENS)
    parser.add_argument("--pairs", type=int, help="of neighbours, evenly spread; default: all")
    parser.add_argument("--random", type=int, default=5, help="random orders")
    parser.add_argument("--gamma", type=float, default=search.GAMMA)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    options = QuantiseOptions(
        model=given.model, format="mixed", calibration=given.calibration,
        calibration_tokens=given.calibration_tokens, threads=given.threads,
    )  # fmt: skip
    with closing(open_model(resolve(given.model))) as source:
        tokens = calibration_windows(source, options, say)
        found = candidates(source.network, tokens, say)
        text = np.ascontiguousarray(tokens[0][: given.search_tokens])
        loss = SwapLoss(source.network, found, text, options.cores)
        count = len(found.names)
        pairs = neighbours(count)
        if given.pairs is not None:
            pairs = pairs[:: max(1, len(pairs) // given.pairs)]
        begun = time.perf_counter()
        singles, between = sensitivities(loss, count, pairs, say)
        print(f"{loss.evaluations} evaluations in {time.perf_counter() - begun:.0f} s", flush=True)
        orders = {
            "augmented": search.ordered(search.augmented(singles, between, given.gamma), found.elements),
            "KL of single matrices": search.ordered(singles, found.elements),
            "Hessian only": search.ordered(found.hessian, found.elements),
        }
        for seed in range(given.random):
            orders[f"random {seed}"] = np.random.default_rng(seed).permutation(count).tolist()
        bits = {name: _bits(name, order, given.target_kl, loss, found) for name, order in orders.items()}
    chance = statistics.mean(value for name, value in bits.items() if name.startswith("random"))
    print(f"random order, mean of {given.random}: {chance:.3f} bits")
    for name in ("augmented", "Hessian only"):
        print(f"{name}: {1 - bits[name] / chance:+.1%} fewer bits than random (claimed: 15 %)")
    saved = 1 - bits["augmented"] / bits["Hessian only"]
    print(f"augmented: {saved:+.1%} fewer bits than Hessian only (claimed: 5 %)")


def _bits(name: str, order: list[int], target: float, loss: SwapLoss, found: Candidates) -> float:
    chosen = search.assign(order, len(LADDER), target, loss)
    bits = search.stored_bits(chosen, found.elements, found.bits)
    split = ", ".join(f"{chosen.count(width)} at {form}" for width, form in enumerate(LADDER))
    print(f"{name}: {bits:.3f} bits, KL {loss(chosen):.4f}, {split}", flush=True)
    return bits


if __name__ == "__main__":
    main()
