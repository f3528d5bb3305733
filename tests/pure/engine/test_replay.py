"""Events alone give the same commands, byte for byte; a changed policy shows."""

from __future__ import annotations

import msgspec
import pytest
from choices import policies
from core_rig import ListSink, Rig, request

from kvern.core.events import Aborted
from kvern.core.limits import EngineConfig
from kvern.core.views import Composing, Policies
from kvern.engine.record import LogError, Recorder, read_entry, read_header
from kvern.engine.replay import replay

CONFIG = EngineConfig(pages=14, units=4, max_context=40, page_tokens=4, max_step_tokens=12, max_running=6)


def recorded(choice: Policies, config: EngineConfig = CONFIG) -> Rig:
    it = Rig(config, choice)
    for key in range(1, 15):
        it.now += 0.1
        it.arrive(request(key, (key % 4) * 7 + 2, 9, tenant="ab"[key % 2]))
        if key % 3 and any(it.flights):
            it.step()
        if key % 5 == 0:
            it.handle(Aborted(key - 1, "left"))
    it.drain()
    it.check_done()
    return it


def test_a_log_replays_byte_for_byte() -> None:
    it = recorded(policies())
    first = replay(it.sink.records, policies())
    assert first.difference is None
    assert first.events == len(it.sink.records) - 1
    assert replay(it.sink.records, policies()).digest == first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"order": "first_come"},
        {"slicing": ("chunked", 3)},
        {"admission": "next_slice_fits"},
        {"composing": ("stall_free", 5)},
    ],
    ids=str,
)
def test_a_changed_policy_diverges(change: dict[str, object]) -> None:
    it = recorded(policies())
    found = replay(it.sink.records, policies(**change))
    assert found.difference is not None
    assert found.difference.recorded != found.difference.replayed


def test_repeated_plans_are_those_the_policy_would_compose() -> None:
    """The hot path reuses the last plan; asking the policies every time must give the same log."""
    it = recorded(policies())
    steady = policies().composing
    asked = Composing(steady.name, steady.compose, steady=False)
    assert replay(it.sink.records, policies(composing=asked)).difference is None


def test_a_replay_does_not_depend_on_the_cache_key() -> None:
    it = recorded(policies())  # made with a key; a replay has none
    assert it.core.stats().prefix_hits_tokens > 0
    assert replay(it.sink.records, policies()).difference is None


def test_the_header_names_config_and_policies() -> None:
    it = recorded(policies())
    header = read_header(it.sink.records[0])
    assert header.config == CONFIG
    assert header.policies == policies().names


def test_damaged_foreign_and_beheaded_logs_are_refused() -> None:
    it = recorded(policies())
    with pytest.raises(LogError, match="empty"):
        replay([], policies())
    with pytest.raises(LogError, match="not the first record"):
        replay(it.sink.records[1:], policies())
    with pytest.raises(LogError, match="damaged"):
        replay([it.sink.records[0], it.sink.records[1][:-1]], policies())
    with pytest.raises(LogError, match="damaged"):
        read_entry(b"\xc1")
    header = msgspec.structs.replace(read_header(it.sink.records[0]), version=99)
    with pytest.raises(LogError, match="version 99"):
        replay([msgspec.msgpack.encode(header)], policies())


def test_a_recorder_flushes_its_sink() -> None:
    class Counting(ListSink):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    sink = Counting()
    Recorder(sink, CONFIG, policies()).flush()
    assert sink.flushed == 1
