"""What ``kvern quantize --format NAME`` makes: a recipe for each name."""

from __future__ import annotations

from dataclasses import replace

from kvern.core.errors import ConfigError
from kvern.formats import weights as weight_formats
from kvern.models.canonical import EMBEDDING, OUTPUT
from kvern.quantise.recipe import Choice, Method, Recipe

MIXED = "mixed"

# Formats that are too coarse, or too slow, for the table of tokens leave it at 8 bits.
_WIDE_ENDS = {EMBEDDING: Choice("W8A8"), OUTPUT: Choice("W8A8")}
# A recipe whose weight formats are not all part of this build is not offered.
_ALL = {
    "w8a8": Recipe(Choice("W8A8"), smooth_inputs=True),
    "qoq": Recipe(Choice("QOQ"), smooth_inputs=True, smooth_attention=True),
    "w6": Recipe(Choice("W6"), smooth_inputs=True),
    "w4a16": Recipe(Choice("W4A16"), smooth_inputs=True),
    "bipolar4": Recipe(Choice("BIPOLAR4"), smooth_inputs=True),
    "bipolar3": Recipe(Choice("BIPOLAR3"), _WIDE_ENDS, smooth_inputs=True),
    "bipolar2": Recipe(Choice("BIPOLAR2"), _WIDE_ENDS, smooth_inputs=True),
    "w4a4-mixed": Recipe(Choice("W4A4_MIXED"), _WIDE_ENDS),
    "bitstack": Recipe(Choice("BITSTACK"), _WIDE_ENDS),
    "q8_0": Recipe(Choice("Q8_0")),
    "q4_1": Recipe(Choice("Q4_1"), smooth_inputs=True),
    "bf16": Recipe(Choice("BF16", method="nearest")),
}


def known(recipe: Recipe) -> bool:
    """Whether every weight format of ``recipe`` is part of this build."""
    choices = (recipe.default, *recipe.choices.values())
    return all(choice.format in weight_formats.NAMES for choice in choices)


RECIPES = {name: recipe for name, recipe in _ALL.items() if known(recipe)}
NAMES = (*RECIPES, MIXED)


def recipe_of(name: str, method: Method | None = None, ends: str | None = None) -> Recipe:
    """The recipe called ``name``; with ``method``, every matrix by that one ("nearest": plain encoding, nothing
    folded); ``ends``: another weight format for the embedding and the output. Raises ConfigError."""
    if name not in RECIPES:
        raise ConfigError(f"there is no format {name!r} to quantise to; there are {', '.join(NAMES)}")
    recipe = RECIPES[name]
    if method is not None:
        choices = {key: replace(choice, method=method) for key, choice in recipe.choices.items()}
        recipe = replace(recipe, default=replace(recipe.default, method=method), choices=choices)
    if method == "nearest":
        recipe = replace(recipe, smooth_inputs=False, smooth_attention=False)
    if ends is not None:
        end = Choice(weight_formats.get(ends).name, method=recipe.default.method)
        recipe = replace(recipe, choices={**recipe.choices, EMBEDDING: end, OUTPUT: end})
    return recipe
