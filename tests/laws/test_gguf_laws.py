"""What a GGUF file holds and the model has no place for, or needs and the file lacks, is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import tl_l2norm as l2
from tests import tiny_gguf
from tests.tiny_folders import norms_and_logits
from tests.tiny_gguf import random_model

WIDE = np.ones(32, dtype=np.float32)


EXTRA: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "blk.0.attn_k.bias, blk.0.attn_output.bias": ("llama", transformers.LlamaConfig, {"attention_bias": True}, {}),
    "blk.0.attn_k_norm.weight, blk.0.attn_q_norm.weight": ("llama", transformers.Qwen3Config, {"head_dim": 8}, {}),
    "blk.2.attn_norm.weight": ("qwen2", transformers.Qwen2Config, {}, {"blk.2.attn_norm.weight": WIDE}),
    "blk.1.attn_sinks.weight": ("qwen3", transformers.Qwen3Config, {"head_dim": 8}, {"blk.1.attn_sinks.weight": WIDE[:4]}),
    "output.bias": ("starcoder2", transformers.Starcoder2Config, {}, {"output.bias": WIDE}),
}


@pytest.mark.parametrize("named", EXTRA)
def test_a_tensor_without_a_place_is_refused_by_name(named: str, tmp_path: Path) -> None:
    architecture, config, options, tensors = EXTRA[named]
    names = architecture if architecture != "llama" or config is transformers.LlamaConfig else "qwen3"
    tiny_gguf.write_model(tmp_path / "m.gguf", random_model(config, **options), architecture, tensors=tensors, named_as=names)
    with pytest.raises(NotImplementedError, match=f"no place for.*{named}.*safetensors"):
        l2.load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("architecture", "lacking"),
    [
        ("llama", "attention.head_count_kv"),
        ("qwen2", "attention.head_count"),
        ("qwen2", "context_length"),
        ("qwen2", "attention.layer_norm_rms_epsilon"),
    ],
)
def test_an_entry_that_a_guess_would_stand_for_is_named(architecture: str, lacking: str, tmp_path: Path) -> None:
    config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[architecture]
    epsilons = ["attention.layer_norm_epsilon"] if "epsilon" in lacking else []  # either of them says it
    tiny_gguf.write_model(tmp_path / "m.gguf", random_model(config), architecture, without=[lacking, *epsilons])
    with pytest.raises(ValueError, match=rf"lacks {architecture}\.{lacking}"):
        l2.load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("architecture", "config"), [("qwen2", transformers.Qwen2Config), ("starcoder2", transformers.Starcoder2Config)]
)
def test_without_heads_of_keys_there_are_as_many_as_of_queries(architecture: str, config: Any, tmp_path: Path) -> None:
    """Against the model that the file was written from."""
    hf_model = random_model(config, num_key_value_heads=4)
    tiny_gguf.write_model(tmp_path / "m.gguf", hf_model, architecture, without=["attention.head_count_kv"])
    tokens = [1 + (31 * i * i) % 255 for i in range(40)]
    norms, _ = norms_and_logits(hf_model, hf_model.model.layers, tokens)
    model = l2.load_model(tmp_path / "m.gguf")
    its_norms = l2.collect(model, [tokens], progress=False)[0].l2_norms
    assert ((its_norms - norms).abs() / norms).max() < 1e-5
    meanings = {check.name: check.meaning for check in l2.selfcheck(model).checks}
    assert "transformers' GGUF reader, as it was loaded" in meanings["file: norms"]


@pytest.mark.parametrize("part", [0.0005, 0.01, 0.5])
def test_a_file_that_is_cut_off_says_so(part: float, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    tiny_gguf.write_gguf(file, bos="<|begin|>", eos="<|endoftext|>")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match="can't be read as GGUF, it seems to be cut off"):
        l2.load_model(file)
