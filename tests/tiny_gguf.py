"""GGUF files of tiny random models, written by the `gguf` package."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

TOKENS = [*sorted(ByteLevel.alphabet()), "Ġt", "<|begin|>", "<|endoftext|>", "<|eot|>", "<|eom|>"]
_WIDTH, _INNER, _LAYERS, _HEADS = 32, 64, 2, 4


def random_model(config: Any, **options: Any) -> Any:
    """A Hugging Face model for `write_model`: gains and biases are drawn too, as zeros and ones would hide a wrong one."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"vocab_size": len(TOKENS), "hidden_size": _WIDTH, "intermediate_size": _INNER}
    own |= {"num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS, "num_key_value_heads": 2}
    own |= {"max_position_embeddings": 512, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    own |= {"pad_token_id": 0, "bos_token_id": TOKENS.index("<|begin|>"), "eos_token_id": TOKENS.index("<|endoftext|>")}
    model = transformers.AutoModelForCausalLM.from_config(config(**own | options)).eval()
    for parameter in model.parameters():
        parameter.data.add_((0.1 if parameter.ndim == 1 else 0.2) * torch.randn(parameter.shape))
    return model


def write_gguf(path: Path, **special: str) -> None:
    """Write the file; `special` names tokens by their roles, as in `eos="<|endoftext|>"`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    _write_tokens(writer, **special)
    for name, shape in _shapes().items():
        writer.add_tensor(name, _draw(name, shape))
    _finish(writer)


def _write_tokens(writer: gguf.GGUFWriter, **special: str) -> None:
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in TOKENS])
    writer.add_token_merges(["Ġ t"])
    for role, token in special.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", TOKENS.index(token))


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _draw(name: str, shape: tuple[int, ...]) -> Any:
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    return 0.2 * np.random.default_rng(len(name)).standard_normal(shape, dtype=np.float32)


def _shapes() -> dict[str, tuple[int, ...]]:
    square, up, down = (_WIDTH, _WIDTH), (_INNER, _WIDTH), (_WIDTH, _INNER)
    block = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    block |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down, "attn_norm": (_WIDTH,), "ffn_norm": (_WIDTH,)}
    ends = {"token_embd": (len(TOKENS), _WIDTH), "output": (len(TOKENS), _WIDTH), "output_norm": (_WIDTH,)}
    blocks = {f"blk.{layer}.{name}.weight": shape for layer in range(_LAYERS) for name, shape in block.items()}
    return blocks | {f"{name}.weight": shape for name, shape in ends.items()}


def write_model(
    path: Path,
    model: Any,
    architecture: str,
    *,
    entries: Mapping[str, float | str] | None = None,
    tensors: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    named_as: str | None = None,
    packed_as: gguf.GGMLQuantizationType | None = None,
) -> None:
    """A GGUF file of a tiny Hugging Face model: Qwen, Phi 3, StarCoder2, Gemma 2 or Gemma 3, whose tensors keep their layout.

    `entries` are more of the architecture's, whole numbers, others and texts; `tensors` stand beside the model's; entries
    `without` are left out. Tensors are `named_as` those of that architecture, else of this. Matrices are `packed_as` blocks.
    """
    cfg = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    if width := getattr(cfg, "head_dim", None):
        writer.add_key_length(width)
        writer.add_value_length(width)
    if window := getattr(cfg, "sliding_window", None):
        writer.add_sliding_window(window)
    writer.add_layer_norm_rms_eps(getattr(cfg, "rms_norm_eps", 1e-5))
    writer.add_layer_norm_eps(getattr(cfg, "norm_epsilon", 1e-5))
    if "rope.freq_base" not in (entries or {}):
        writer.add_rope_freq_base(10_000.0)
    for name, value in (entries or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture}.{name}", value)
    for name in without:
        del writer.kv_data[0][f"{architecture}.{name}"]
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    _write_tokens(writer, bos="<|begin|>", eos="<|endoftext|>")
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == (named_as or architecture))
    names = gguf.get_tensor_name_map(kind, cfg.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is not None:  # Gemma 2 has no head of its own
            own = tensor.float().numpy()
            if packed_as is not None and own.ndim == 2:
                writer.add_tensor(written, gguf.quantize(own, packed_as), raw_dtype=packed_as)
            else:
                writer.add_tensor(written, own + 1 if architecture.startswith("gemma") and "norm" in written else own)
    _finish(writer)
