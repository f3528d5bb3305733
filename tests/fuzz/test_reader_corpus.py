"""Replays the files that the fuzzer of the readers kept, and fuzzes anew for a moment."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_readers

CORPUS = sorted(
    path for path in (Path(__file__).parent / "corpus").iterdir() if path.suffix[1:] in fuzz_readers.READERS
)


def test_the_corpus_is_there_and_small() -> None:
    assert 50 <= len(CORPUS) < 200
    assert sum(path.stat().st_size for path in CORPUS) < 1 << 20


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_only_a_model_file_error_comes_out(path: Path) -> None:
    assert fuzz_readers.outcome(path, fuzz_readers.READERS[path.suffix[1:]][1])


@pytest.mark.parametrize("kind", fuzz_readers.READERS)
def test_unchanged_files_are_read_and_changed_ones_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    make, read = fuzz_readers.READERS[kind]
    draw, path, outcomes = random.Random(5), tmp_path / f"case.{kind}", set()
    for _ in range(150):
        raw = make(draw)
        path.write_bytes(raw)
        assert fuzz_readers.outcome(path, read) == "read"
        path.write_bytes(fuzz_readers.mutate(kind, raw, make(draw), draw))
        outcomes.add(fuzz_readers.outcome(path, read))
    assert len(outcomes) > 10
