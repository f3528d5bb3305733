"""Small vocabularies of the two kinds of tokenizers, as GGUF metadata and as tokenizer.json."""

from __future__ import annotations

import numpy as np

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
MERGES = (
    "t h", "th e", "{s} the", "i n", "a n", "an d", "{s} and", "e r", "o n", "r e", "{s} a", "{s} s", "o u", "{s} w",
    "{s} t", "{s} o", "e n", "in g", "h e", "{s} h", "i s", "{s} is", "{s} b", "{s} c", "o r", "{s} i", "l l",
    "{s} m",
    "e s", "a t", "{s} f", "{s} in", "{s} to", "y ou", "{s} you", "e d", "v er", "{s} of", "l y", "{s} th", "the r",
)  # fmt: skip
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n{{ message.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPLITS = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level BPE (as in GPT-2)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = {byte: 256 + i for i, byte in enumerate(b for b in range(256) if b not in kept)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]


def _merges(space: str, pieces: list[str]) -> list[str]:
    """Merges whose halves exist, in order; appends what they make to ``pieces``."""
    made = []
    for rule in MERGES:
        left, right = rule.format(s=space).split(" ")
        if left in pieces and right in pieces and left + right not in pieces:
            made.append(f"{left} {right}")
            pieces.append(left + right)
    return made


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
SPM_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def byte_level() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges, token types; ids 0..3 are the special ones."""
    symbols = byte_symbols()
    pieces = list(symbols)
    merges = _merges("Ġ", pieces)
    return SPECIALS + pieces, merges, [CONTROL] * len(SPECIALS) + [NORMAL] * len(pieces)


def pieces_with_scores() -> tuple[list[str], list[str], list[int], list[float]]:
    """Tokens, merges, token types and scores of a SentencePiece-style vocabulary."""
    alphabet = ["▁", "\n", *(chr(c) for c in range(33, 127)), *"éüñßàç世界"]
    pieces = list(alphabet)
    merges = _merges("▁", pieces)
    made = pieces[len(alphabet) :]
    tokens = SPM_SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)] + made + alphabet
    kinds = [CONTROL] * 3 + [UNKNOWN] + [CONTROL] * 2 + [BYTE] * 256 + [NORMAL] * (len(made) + len(alphabet))
    scores = [0.0] * (len(SPM_SPECIALS) + 256) + [float(-i) for i in range(len(made))]
    scores += [-float(len(made) + i) for i in range(len(alphabet))]
    return tokens, merges, kinds, scores


def size(family: str) -> int:
    return len(pieces_with_scores()[0] if family == "gemma3" else byte_level()[0])


def gguf_metadata(family: str) -> dict[str, object]:
    """The ``tokenizer.*`` keys."""
    if family == "gemma3":
        tokens, _, kinds, scores = pieces_with_scores()
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.asarray(scores, "<f4"),
            "tokenizer.ggml.token_type": np.asarray(kinds, "<i4"),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.chat_template": TURNS,
        }
    tokens, merges, kinds = byte_level()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": SPLITS[family],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": np.asarray(kinds, "<i4"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def tokenizer_json(family: str) -> dict[str, object]:
    """What tokenizer.json holds for the same vocabulary."""
    return _pieces_json() if family == "gemma3" else _byte_level_json()


def tokenizer_config(family: str) -> dict[str, object]:
    if family == "gemma3":
        return {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True, "chat_template": TURNS}
    return {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": CHATML}


def _added(specials: list[str]) -> list[dict[str, object]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": text, **plain} for i, text in enumerate(specials)]


def _json(specials: list[str], **parts: object) -> dict[str, object]:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(specials), **parts}


def _model(tokens: list[str], merges: list[str], **options: object) -> dict[str, object]:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**plain, **options, "vocab": {text: i for i, text in enumerate(tokens)}, "merges": merges}


def _byte_level_json() -> dict[str, object]:
    tokens, merges, _ = byte_level()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return _json(
        SPECIALS,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, level]},
        post_processor=None,
        decoder=level,
        model=_model(tokens, merges),
    )


def _pieces_json() -> dict[str, object]:
    tokens, merges, _, _ = pieces_with_scores()
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return _json(
        SPM_SPECIALS,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        model=_model(tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    )
