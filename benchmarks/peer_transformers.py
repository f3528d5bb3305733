"""The same weights in transformers: a GGUF file read and dequantised by the gguf package alone, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Peer:
    """A causal language model of transformers. ``logits`` are float32 [rows, vocabulary]."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        reader = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items() if "tokenizer.ggml" not in name}
        self.gemma = facts["general.architecture"] == "gemma3"
        config = _gemma3(facts, reader) if self.gemma else _llama(facts, reader)
        with torch.device("meta"):
            self.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        weights = dict(self._tensor(tensor, config) for tensor in reader.tensors)
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        self.model.load_state_dict(weights, assign=True, strict=True)
        for name, module in self.model.named_modules():  # buffers that are not in the file: rotary tables, scales
            if name.endswith(("rotary_emb", "embed_tokens")):
                fresh = type(module)(config) if name.endswith("rotary_emb") else None
                for key, value in ({} if fresh is None else dict(fresh.named_buffers())).items():
                    module.register_buffer(key, value, persistent=False)
        if self.gemma:
            self.model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
        self.model.eval()

    def _tensor(self, tensor: Any, config: Any) -> tuple[str, torch.Tensor]:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape(tuple(int(size) for size in tensor.shape[::-1]))
        base, kind = tensor.name.rsplit(".", 1)
        if base in _WHOLE:
            name = _WHOLE[base]
        else:
            _, layer, part = base.split(".")
            after = "pre_feedforward_layernorm" if self.gemma else "post_attention_layernorm"
            name = f"model.layers.{layer}.{after if part == 'ffn_norm' else _LAYER[part]}"
            if not self.gemma and part in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if self.gemma and name.endswith("norm"):
            values = values - 1
        return f"{name}.{kind}", torch.from_numpy(np.ascontiguousarray(values))

    def logits(self, tokens: list[int], first: int) -> NDArray[np.float32]:
        """At positions ``first`` and later."""
        with torch.no_grad():
            hidden = self.model.model(torch.tensor([tokens])).last_hidden_state[0, first:]
            found: NDArray[np.float32] = self.model.lm_head(hidden).numpy()
        return found


def _sizes(facts: dict[str, Any], reader: Any, family: str) -> dict[str, Any]:
    names = {tensor.name for tensor in reader.tensors}
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    return {
        "vocab_size": int(table.shape[1]),
        "hidden_size": facts[f"{family}.embedding_length"],
        "intermediate_size": facts[f"{family}.feed_forward_length"],
        "num_hidden_layers": facts[f"{family}.block_count"],
        "num_attention_heads": facts[f"{family}.attention.head_count"],
        "num_key_value_heads": facts[f"{family}.attention.head_count_kv"],
        "max_position_embeddings": facts[f"{family}.context_length"],
        "rms_norm_eps": facts[f"{family}.attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": "output.weight" not in names,
    }


def _llama(facts: dict[str, Any], reader: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]}
    return transformers.LlamaConfig(**_sizes(facts, reader, "llama"), rope_parameters=rope)


def _gemma3(facts: dict[str, Any], reader: Any) -> Any:
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": facts["gemma3.rope.freq_base"]},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    width = facts["gemma3.attention.key_length"]
    return transformers.Gemma3TextConfig(
        **_sizes(facts, reader, "gemma3"),
        head_dim=width,
        query_pre_attn_scalar=width,
        sliding_window=facts["gemma3.attention.sliding_window"],
        rope_parameters=ropes,
    )
