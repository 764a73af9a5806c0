"""Wrap a Hugging Face model as a `TransformerBridge`."""

from __future__ import annotations

from typing import Any

import torch

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.agreement import or_refused, probe_tokens, require_agreement, sound_pass
from tl_l2norm.models.bridge_backend import BridgeBackend

_NEWER = "another version of TransformerLens may get it right"
_NEUTRAL = "model"  # TransformerLens takes some names for others (MODEL_ALIASES), and looks for processors under them


def make_bridge(hf_model: Any, tokenizer: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Wrap the model in a `TransformerBridge`, and check that it computes what it computed before.

    Raises:
        NotImplementedError: an architecture that the bridge doesn't know, can't run or gets wrong.
    """
    from transformer_lens.model_bridge import TransformerBridge

    _name_architecture(hf_model)
    hf_model.set_attn_implementation("eager")  # what the bridge runs; masks must be made for it
    hf_model = hf_model.to(device)
    config = hf_model.config.get_text_config()
    tokens = probe_tokens(config.vocab_size, getattr(config, "max_position_embeddings", None))
    truth = sound_pass(hf_model, tokens)
    with or_refused("TransformerBridge", type(hf_model).__name__, _NEWER):
        bridge = TransformerBridge.boot_transformers(
            _NEUTRAL, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    bridge.cfg.model_name = name
    require_agreement(BridgeBackend(bridge), truth, tokens, _NEWER)
    return bridge


def _name_architecture(hf_model: Any) -> None:
    """Set what the bridge looks the model up by: the class that was read, which GGUF doesn't name, then what the file says."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.utilities.architectures import classify_architecture

    names = [type(hf_model).__name__, *(hf_model.config.architectures or ())]
    known = [name for name in names if name in SUPPORTED_ARCHITECTURES and classify_architecture(name) == "causal_lm"]
    if not known:
        raise Unsupported(f"TransformerBridge doesn't know the architecture {names[0]}; a newer TransformerLens may")
    hf_model.config.architectures = known
