"""Tiny random models of many kinds of cache, by plain Hugging Face and on the bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from tests.chat_templates import tokenizer_of

PROMPTS = [list(range(5, 17)), list(range(40, 44)), [90]]
SMALL = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
_TWO_KINDS = ["sliding_attention", "full_attention"] * 2
_GPT = {"vocab_size": 300, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128, "initializer_range": 0.15}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "gpt2, a cache by position": lambda: transformers.GPT2Config(**_GPT),
    "neox, a cache called layer_past": lambda: transformers.GPTNeoXConfig(**{**SMALL, "num_key_value_heads": None}),
    "bloom, alibi": lambda: transformers.BloomConfig(
        vocab_size=300, hidden_size=48, n_layer=4, n_head=4, initializer_range=0.15
    ),
    "gemma 3, a window shorter than the check": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=16, sliding_window=4, layer_types=_TWO_KINDS
    ),
    "gpt-oss, sinks and experts": lambda: transformers.GptOssConfig(
        **SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=4, layer_types=_TWO_KINDS
    ),
    "deepseek, latent attention": lambda: transformers.DeepseekV2Config(
        **{**SMALL, "num_key_value_heads": 4}, **_MLA, **_EXPERTS, n_routed_experts=4, n_shared_experts=1
    ),
    "lfm 2, convolutions between": lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2),
    "falcon h1, recurrent heads beside attention": lambda: transformers.FalconH1Config(
        **SMALL, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=4
    ),
    "jamba, recurrent layers between": lambda: transformers.JambaConfig(
        **SMALL, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    ),
}
RECURRENT: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2, state_size=8),
    "mamba 2": lambda: transformers.Mamba2Config(
        vocab_size=300, hidden_size=48, num_hidden_layers=2, num_heads=6, head_dim=16, state_size=8, n_groups=1, chunk_size=4
    ),
    "rwkv": lambda: transformers.RwkvConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2),
    "bamba": lambda: transformers.BambaConfig(
        **SMALL, mamba_n_heads=6, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, attn_layer_indices=[1, 3]
    ),
}
"""Some versions decode these otherwise than in one pass."""


def hugging_face(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.architectures = [type(model).__name__]
    return model


def bridge(model: Any) -> Any:
    return TransformerBridge.boot_transformers(
        "tiny", hf_model=model, tokenizer=tokenizer_of("plain words"), device="cpu", dtype=torch.float32
    )
