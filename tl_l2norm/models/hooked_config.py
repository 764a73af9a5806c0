"""A Hugging Face configuration as HookedTransformer's, or a refusal that names what would be lost."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tl_l2norm.core.errors import InputError, Unsupported

_MAX_CTX = 8192  # HookedTransformer holds rotary tables of n_ctx positions in every block
_NAMED_AFTER = ("llama", "gemma")  # TransformerLens takes a path with these in it for that architecture
BRIDGE = "use backend='bridge'"


def hooked_config(hf_config: Any, architecture: str) -> dict[str, Any]:
    """TransformerLens' own conversion, and what it passes over: rope scaling, sliding windows, a head's width.

    Raises:
        NotImplementedError: HookedTransformer doesn't have the architecture, or something that the configuration asks for.
        ValueError: a head's width that TransformerLens would take for another.
    """
    config = _converted(hf_config, architecture)
    if getattr(hf_config, "mlp_bias", False):
        raise Unsupported(f"HookedTransformer has no biases in a gated MLP (mlp_bias=True): {BRIDGE}")
    if getattr(hf_config, "attention_chunk_size", None):
        raise Unsupported(f"HookedTransformer has no chunked attention (attention_chunk_size): {BRIDGE}")
    head_dim = getattr(hf_config, "head_dim", None)
    if head_dim and head_dim != config["d_head"]:
        raise InputError(f"HookedTransformer would take d_head={config['d_head']}, the model has {head_dim}: {BRIDGE}")
    config |= _windows(hf_config) | _rope(hf_config, config)
    config["n_ctx"] = min(int(getattr(hf_config, "max_position_embeddings", None) or config["n_ctx"]), _MAX_CTX)
    config["trust_remote_code"] = False
    return config


def _converted(hf_config: Any, architecture: str) -> dict[str, Any]:
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    described = hf_config.to_dict()
    described["architectures"] = [architecture]  # a GGUF file doesn't name it
    described.setdefault("n_ctx", described.get("n_positions"))  # GPT-2's old name, which the conversion reads
    with neutral_folder() as folder:
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(described, file, default=str)
        try:
            config = dict(convert_hf_model_config(folder))
        except NotImplementedError as error:
            raise Unsupported(f"HookedTransformer doesn't know the architecture {architecture}: {BRIDGE}") from error
        except AttributeError as error:  # the conversion reads what this version of transformers keeps elsewhere
            raise Unsupported(
                f"TransformerLens can't convert the configuration of {architecture} ({error}): {BRIDGE}"
            ) from error
    if config["original_architecture"] != architecture:
        raise Unsupported(f"TransformerLens took {architecture} for {config['original_architecture']}: {BRIDGE}")
    return config


@contextmanager
def neutral_folder() -> Iterator[str]:
    """A temporary folder with a path that TransformerLens reads no architecture from.

    Raises:
        ValueError: there is none.
    """
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp", os.getcwd()):
        if os.access(parent, os.W_OK) and not any(name in os.path.realpath(parent).lower() for name in _NAMED_AFTER):
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                yield folder
            return
    raise InputError(f"every folder for temporary files has {' or '.join(_NAMED_AFTER)} in its path: set TMPDIR to another")


def _windows(hf_config: Any) -> dict[str, Any]:
    """Which blocks attend to a window only; none of it where the configuration doesn't speak of windows."""
    if not hasattr(hf_config, "sliding_window"):
        return {}
    window, kinds = hf_config.sliding_window, getattr(hf_config, "layer_types", None)
    kinds = kinds or ["sliding_attention"] * hf_config.num_hidden_layers
    known = {"sliding_attention": "local" if window else "global", "full_attention": "global"}
    odd = sorted(set(kinds) - set(known))
    if odd:
        raise Unsupported(f"HookedTransformer has no layers of the kind {', '.join(odd)}: {BRIDGE}")
    types = [known[kind] for kind in kinds]
    if "local" not in types:
        return {"use_local_attn": False, "window_size": None, "attn_types": None}
    return {"use_local_attn": True, "window_size": int(window), "attn_types": types}


def _rope(hf_config: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Scaling of rotary positions. That the tables are the model's is checked once they are made."""
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        return {}  # one set for each kind of layer: as TransformerLens converts them
    kind = rope.get("rope_type", "default")
    match kind:
        case "default":
            return {}
        case "llama3" if config.get("use_NTK_by_parts_rope"):
            return {}
        case "linear":
            return {"rotary_scaling_factor": float(rope["factor"])}
        case "yarn":
            factor = float(rope["factor"])
            return {
                "use_yarn_rope": True,
                "yarn_factor": factor,
                "yarn_attention_factor": float(rope.get("attention_factor") or 0.1 * math.log(max(factor, 1.0)) + 1),
                "yarn_beta_fast": float(rope.get("beta_fast") or 32),
                "yarn_beta_slow": float(rope.get("beta_slow") or 1),
                "yarn_original_max_position_embeddings": int(rope["original_max_position_embeddings"]),
                "yarn_truncate": bool(rope.get("truncate", True)),
            }
    raise Unsupported(f"HookedTransformer has no rotary positions of the kind {kind!r}: {BRIDGE}")


@torch.no_grad()
def require_rotations(model: Any, hf_model: Any) -> None:
    """Refuse a HookedTransformer that rotates otherwise than Hugging Face at any position: a short probe sees only the first.

    Raises:
        NotImplementedError: with the first position at which they differ.
    """
    rotary = next((module for name, module in hf_model.named_modules() if name.rsplit(".", 1)[-1] == "rotary_emb"), None)
    if rotary is None:
        return  # learned positions, ALiBi, or GPT-J's fixed ones
    n_pos = len(
        model.blocks[0].attn.rotary_cos
    )  # the first ones; TransformerLens adds more by the same rule when it needs them
    positions = torch.arange(n_pos)[None]
    kinds = getattr(hf_model.config, "layer_types", None) if getattr(rotary, "layer_types", None) else None
    for layer, block in enumerate(model.blocks):
        extra = (kinds[layer],) if kinds else ()
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), positions, *extra)
        for ours, theirs in ((block.attn.rotary_cos, cos[0]), (block.attn.rotary_sin, sin[0])):
            off = (ours.float().cpu() - theirs.float().cpu()).abs().amax(-1) > 2e-2
            if off.any():
                raise Unsupported(
                    f"HookedTransformer would rotate position {int(off.nonzero()[0, 0])} in block {layer} otherwise than the "
                    f"model does: {BRIDGE}"
                )
