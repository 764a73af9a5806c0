"""Make a `HookedTransformer` (TransformerLens 3) of a Hugging Face model."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from tl_l2norm.core.errors import MissingPackage
from tl_l2norm.models.agreement import blocks_of, or_refused, probe_tokens, require_agreement, sound_pass
from tl_l2norm.models.hooked_backend import HookedBackend
from tl_l2norm.models.hooked_config import BRIDGE, hooked_config, neutral_folder, require_rotations


def require_hooked() -> None:
    """Say what to install where TransformerLens has no HookedTransformer.

    Raises:
        ImportError: TransformerLens 4.
    """
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "backend='hooked' needs HookedTransformer, which TransformerLens 4 removed: pip install 'tl_l2norm[sae]' "
            "(TransformerLens 3 with SAELens), or use backend='bridge'"
        ) from error


def make_hooked(hf_model: Any, tokenizer: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Convert the model to a `HookedTransformer`, and check that it computes what the Hugging Face model computes.

    Raises:
        NotImplementedError: an architecture or option that HookedTransformer doesn't have.
    """
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

    config = hooked_config(hf_model.config, type(hf_model).__name__)
    config |= {"model_name": name, "device": str(device), "dtype": dtype, "init_weights": False}
    cfg = HookedTransformerConfig.from_dict(config)
    hf_model.set_attn_implementation("eager")
    tokens = probe_tokens(cfg.d_vocab, cfg.n_ctx)
    truth = sound_pass(hf_model, tokens)
    with or_refused("HookedTransformer", type(hf_model).__name__, BRIDGE):
        model = _converted(hf_model, cfg, tokenizer)
        require_rotations(model, hf_model)
    model.eval().generation_config = hf_model.generation_config  # with the tokens that end a turn
    require_agreement(HookedBackend(model), truth, tokens, BRIDGE)
    return model


def _converted(hf_model: Any, cfg: Any, tokenizer: Any) -> Any:
    model = new_hooked(cfg, tokenizer)
    model.load_and_process_state_dict(
        _state(hf_model, cfg, cfg.dtype),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    _lay_out(model)
    return model


def new_hooked(cfg: Any, tokenizer: Any) -> Any:
    """A HookedTransformer as its configuration has it."""
    from transformer_lens import HookedTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TransformerLens 3 announces its removal in 4
        return HookedTransformer(cfg, tokenizer)


def _state(hf_model: Any, cfg: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    with neutral_folder() as nowhere:  # a path that exists skips the list of official names
        state: dict[str, torch.Tensor] = get_pretrained_state_dict(nowhere, cfg, hf_model, dtype=dtype)
    if getattr(hf_model.config, "attention_bias", False):
        _add_attention_biases(state, hf_model)
    return state


def _add_attention_biases(state: dict[str, torch.Tensor], hf_model: Any) -> None:
    """TransformerLens converts Llama and Qwen3 with zeros in their place."""
    for layer, block in enumerate(blocks_of(hf_model)):
        attention = getattr(block, "self_attn", None)
        for ours, theirs in (("b_Q", "q_proj"), ("b_K", "k_proj"), ("b_V", "v_proj"), ("b_O", "o_proj")):
            bias = getattr(getattr(attention, theirs, None), "bias", None)
            for name in (f"blocks.{layer}.attn.{ours}", f"blocks.{layer}.attn._{ours}"):  # _b_K where keys are shared
                if bias is not None and name in state:
                    state[name] = bias.detach().reshape(state[name].shape).to(state[name])


def _lay_out(model: Any) -> None:
    """Keep the matrices that TransformerLens multiplies by as `W.T.contiguous()` in that order in memory.

    The values and shapes stay; what goes is a copy of each of them at every step, two thirds of a decode step's time.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.rsplit(".", 1)[-1] in ("W_in", "W_gate", "W_out", "W_U"):
            parameter.data = parameter.data.T.contiguous().T
