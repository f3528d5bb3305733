"""A structure-aware fuzzer of the GGUF and safetensors readers.

    python tests/fuzz/fuzz_readers.py --seconds 600 [--seed 0] [--keep FOLDER]

It makes small valid files, knows where their counts, lengths, types and offsets stand, and changes those more often
than other bytes. Only ModelFileError may come out of a reader; a case may take neither much memory nor much time.
Cases that give a kind of error not seen before are kept as a corpus when ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from gguf_writer import RawTensor, gguf_bytes
from safetensors_writer import safetensors_bytes

from kvern.core.errors import ModelFileError
from kvern.weights import gguf, safetensors
from kvern.weights.mapped_file import TensorFile

CASE_SECONDS = 5
CASE_BYTES = 16 << 20  # allocated by one case; the files have a few kilobytes
SPACE_BYTES = 2 << 30  # address space of the whole process
KEPT = 180
KEPT_BYTES = 4096

INTERESTING = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 255, 256, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
               (1 << 48) + 1, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
TOKENS = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"-", b"1e999", b"NaN", b"null", b"true", b"1.5", b"\\ud800",
          b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b"18446744073709551616", b"-1"]  # fmt: skip
Case = Callable[[random.Random], bytes]
Reader = Callable[[Path], TensorFile]
VALUES = [7, -5, 0.5, True, "text", "é", "", ["a", "b"], [1, 2, 3], [True], [0.5], []]


def random_gguf(draw: random.Random) -> bytes:
    """A valid file of a few keys and tensors of random kinds."""
    metadata: dict[str, object] = {f"k{i}": draw.choice(VALUES) for i in range(draw.randrange(5))}
    alignment = draw.choice([1, 8, 32, 64])
    if alignment != 32 or draw.random() < 0.3:
        metadata["general.alignment"] = alignment
    tensors = []
    for index in range(draw.randrange(4)):
        kind = draw.choice(list(gguf.TENSOR_TYPES))
        _, block, block_bytes = gguf.TENSOR_TYPES[kind]
        shape = (*[draw.randrange(1, 3) for _ in range(draw.randrange(3))], block)
        count = block_bytes
        for size in shape[:-1]:
            count *= size
        tensors.append(RawTensor(f"t{index}", kind, shape, bytes(count)))
    return gguf_bytes(metadata, tensors, draw.choice([2, 3]), alignment)


def random_safetensors(draw: random.Random) -> bytes:
    tensors = {}
    for index in range(draw.randrange(5)):
        dtype, item = draw.choice(list(safetensors.ITEM_BYTES.items()))
        shape = tuple(draw.randrange(4) for _ in range(draw.randrange(4)))
        count = item
        for size in shape:
            count *= size
        tensors[f"t{index}"] = (dtype, shape, bytes(count))
    return safetensors_bytes(tensors)


def mutate(kind: str, raw: bytes, donor: bytes, draw: random.Random) -> bytes:
    """One to six changes: numbers of the structure, bits, cuts, copies, pieces of another file."""
    data = bytearray(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        if not data:
            break
        draw.choice(CHANGES[kind])(data, donor, draw)
    return bytes(data)


def place(data: bytearray, draw: random.Random) -> int:
    """Anywhere, but the beginning more often: that is where the structure is."""
    return draw.randrange(min(len(data), 64)) if draw.random() < 0.4 else draw.randrange(len(data))


def change_number(data: bytearray, _: bytes, draw: random.Random) -> None:
    """Overwrite what looks like a small little-endian number (a count, a length, a type, an offset)."""
    code = draw.choice(["<Q", "<Q", "<I", "<H", "<B"])
    width = struct.calcsize(code)
    limit = len(data) - width
    if limit < 0:
        return
    at = min(place(data, draw), limit)
    for _attempt in range(8):
        if struct.unpack_from(code, data, at)[0] < 1 << 16:
            break
        at = draw.randrange(limit + 1)
    old = struct.unpack_from(code, data, at)[0]
    new = draw.choice([*INTERESTING, old + 1, old - 1, old * 2, len(data), len(data) - at])
    struct.pack_into(code, data, at, new % (1 << 8 * width))


def flip_bit(data: bytearray, _: bytes, draw: random.Random) -> None:
    data[place(data, draw)] ^= 1 << draw.randrange(8)


def cut(data: bytearray, _: bytes, draw: random.Random) -> None:
    begin = place(data, draw)
    del data[begin : begin + draw.choice([1, 4, 8, 1 << 20])]


def repeat(data: bytearray, _: bytes, draw: random.Random) -> None:
    begin = place(data, draw)
    piece = data[begin : begin + draw.choice([1, 8, 24, 64])]
    data[begin:begin] = piece * draw.choice([1, 2, 50])


def splice(data: bytearray, donor: bytes, draw: random.Random) -> None:
    begin = draw.randrange(len(donor)) if donor else 0
    at = place(data, draw)
    data[at : at + draw.choice([0, 8, 32])] = donor[begin : begin + draw.choice([8, 32, 128])]


def insert_token(data: bytearray, _: bytes, draw: random.Random) -> None:
    at = place(data, draw)
    data[at : at + draw.choice([0, 0, 1, 3])] = draw.choice(TOKENS) * draw.choice([1, 1, 1, 40])


def change_json(data: bytearray, _: bytes, draw: random.Random) -> None:
    """Change one value inside a safetensors header and write the header's length anew."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        return
    entries = [entry for entry in header.values() if isinstance(entry, dict)] if isinstance(header, dict) else []
    if not entries:
        return
    entry = draw.choice(entries)
    key = draw.choice([*entry, "extra"])
    old = entry.get(key)
    if isinstance(old, list) and old and draw.random() < 0.8:
        old[draw.randrange(len(old))] = draw.choice([*INTERESTING, -1, 1.5, None, "x", [], True])
    else:
        entry[key] = draw.choice([*INTERESTING, -1, None, [], {}, "F32", "F64", [1, 2], [0, 8]])
    raw = json.dumps(header).encode()
    data[: 8 + length] = len(raw).to_bytes(8, "little") + raw


OF_BYTES = [flip_bit, cut, repeat, splice, insert_token]
CHANGES = {"gguf": [change_number] * 6 + OF_BYTES, "safetensors": [change_json] * 8 + [change_number] + OF_BYTES}
READERS: dict[str, tuple[Case, Reader]] = {
    "gguf": (random_gguf, gguf.read),
    "safetensors": (random_safetensors, safetensors.read),
}


def outcome(path: Path, read: Reader) -> str:
    """Read one file and all of its tensors; "read", or the kind of error, without numbers and names in it."""
    try:
        with read(path) as file:
            for name, info in file.tensors.items():
                data = file.data(name)
                if data.size != info.nbytes:
                    raise RuntimeError(f"{name}: {data.size} bytes, not {info.nbytes}")
                int(data.sum())
                file.release(name)
                del data
    except ModelFileError as error:
        kind = str(error).replace(str(path), "")
        return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|\(.*\)", "*", kind)[:80]
    return "read"


def too_slow(signal_number: int, frame: object) -> None:
    raise TimeoutError(f"a case took more than {CASE_SECONDS} s")


def run_case(kind: str, raw: bytes, path: Path) -> str:
    """One case under its limits; raises whatever should not have come out."""
    path.write_bytes(raw)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    signal.alarm(CASE_SECONDS)
    found = outcome(path, READERS[kind][1])
    signal.alarm(0)
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > CASE_BYTES:
        raise MemoryError(f"a case of {len(raw)} bytes allocated {peak}")
    return found


def fuzz(seconds: float, seed: int, keep: Path | None) -> Counter[str]:
    """Run for so long; how often each outcome was seen. A failing case is left behind as FAILED.*"""
    draw, seen, kept = random.Random(seed), Counter[str](), 0
    tracemalloc.start()
    signal.signal(signal.SIGALRM, too_slow)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < deadline:
            kind = draw.choice(list(READERS))
            raw = mutate(kind, READERS[kind][0](draw), READERS[kind][0](draw), draw)
            try:
                found = f"{kind}: {run_case(kind, raw, Path(folder) / f'case.{kind}')}"
            except BaseException:
                Path(f"FAILED.{kind}").write_bytes(raw)
                raise
            seen[found] += 1
            if keep is not None and seen[found] <= 2 and len(raw) <= KEPT_BYTES and kept < KEPT:
                kept += 1
                (keep / f"{hashlib.sha256(raw).hexdigest()[:16]}.{kind}").write_bytes(raw)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (SPACE_BYTES, SPACE_BYTES))
    seen = fuzz(options.seconds, options.seed, options.keep)
    for found, count in seen.most_common():
        print(f"{count:9d}  {found}")
    print(f"{seen.total()} cases, {len(seen)} outcomes")


if __name__ == "__main__":
    main()
