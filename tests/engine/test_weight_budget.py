"""The memory of a bitstack model's weights, changed while its engine serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tiny_models
from small_engine import collect
from tiny_engine import prompt_of, tiny_engine

from kvern.assembly.quantiser import QuantiseOptions, quantise_model, silent
from kvern.core.errors import ConfigError
from kvern.core.request import Request, Sampling

pytest.importorskip("kvern._native", reason="the native library is not built")


@pytest.fixture(scope="module")
def stacked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitstack")
    source = tiny_models.write_gguf(folder / "tiny.gguf", "llama", "F32", layers=1, context=192)
    text = folder / "text.txt"
    text.write_text("The keeper climbed the stairs, wound the clockwork, and wrote: wind from the north. " * 4)
    out = folder / "tiny.safetensors"
    options = QuantiseOptions(
        model=str(source), out=out, format="bitstack", calibration=text, held_out=text, calibration_tokens=192,
        threads=1, report=False,
    )  # fmt: skip
    quantise_model(options, silent)
    return out


async def answer(client, number: int) -> list[int]:
    request = Request(number, tuple(prompt_of(3, 20)), Sampling(temperature=0.0, max_tokens=24, min_tokens=24))
    tokens, _ = await collect(client, request)
    return tokens


@pytest.mark.parametrize("embed", [True, False])
def test_weights_shrink_and_grow_while_it_serves(stacked_file: Path, embed: bool) -> None:
    async def scene() -> None:
        async with tiny_engine(embed=embed, model=str(stacked_file), prefix_cache=False) as client:
            whole = await answer(client, 1)
            with pytest.raises(ConfigError, match="too small"):
                await client.set_weight_budget(1)
            assert await answer(client, 2) == whole  # a refusal changes nothing
            least = 0
            for budget in range(8 << 10, 1 << 20, 8 << 10):
                try:
                    await client.set_weight_budget(budget)
                except ConfigError:
                    continue
                least = budget
                break
            assert least, "no budget was large enough"
            assert await answer(client, 3) != whole
            await client.set_weight_budget(None)
            assert await answer(client, 4) == whole

    asyncio.run(asyncio.wait_for(scene(), 200))


def test_a_budget_from_the_start(stacked_file: Path) -> None:
    async def scene() -> None:
        with pytest.raises(ConfigError, match="too small"):
            async with tiny_engine(model=str(stacked_file), weight_budget=1):
                pass

    asyncio.run(asyncio.wait_for(scene(), 200))


def test_other_backends_have_one_size() -> None:
    async def scene() -> None:
        async with tiny_engine(backend="reference") as client:
            with pytest.raises(ConfigError, match="one size"):
                await client.set_weight_budget(1 << 20)

    asyncio.run(asyncio.wait_for(scene(), 200))
