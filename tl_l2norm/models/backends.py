"""The backend of a model that a user has."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tl_l2norm.core.errors import InputError, InputTypeError, Unsupported
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.bridge_backend import BridgeBackend
from tl_l2norm.models.described import Described
from tl_l2norm.models.hooked_backend import HookedBackend


def backend_of(model: Any) -> Backend:
    """The backend of a model that the user loaded with TransformerLens.

    Raises:
        TypeError: something else, with what to do instead.
        ValueError: a compiled model (hooks added later never fire), one in training mode, or an encoder-decoder.
        NotImplementedError: weights that are offloaded, or placeholders.

    Examples:
        >>> backend = l2.models.backend_of(model)
        >>> backend.name, backend.n_layers, backend.resid_post(3).name
        ('bridge', 12, 'blocks.3.hook_out')
    """
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise InputError("the model was compiled: hooks added afterwards never fire; use the model before torch.compile")
    if isinstance(model, TransformerBridge):
        if getattr(model.original_model.config, "is_encoder_decoder", False) or not hasattr(model, "blocks"):
            raise InputError("only decoder-only language models have one residual stream to look at")
        if model.original_model.training:
            raise InputError("the model is in training mode, where dropout changes its states: call model.eval() first")
        backend: Backend = BridgeBackend(model)
    elif isinstance(model, _hooked_transformer()):
        backend = HookedBackend(model)
    elif isinstance(model, Described):
        raise InputTypeError(
            f"this needs the model itself, and got {model!r}: an engine only generates, with generate, run_modes, "
            "sample_thinking and suppress_and_ask; load the model with load_model(...), and it reads what the engine wrote"
        )
    else:
        raise InputTypeError(
            f"expected a TransformerBridge or HookedTransformer, got {type(model).__name__}: load one with "
            "tl_l2norm.load_model(...), or wrap a Hugging Face model with "
            "TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )
    _require_weights(model)
    _warn_if_centred(backend)
    return backend


def _require_weights(model: Any) -> None:
    """Refuse placeholders: what TransformerLens computes from weights directly would fail on them, or be wrong."""
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise Unsupported(
            f"{len(away)} weights of this model are placeholders on 'meta' ({away[0]}, ...), offloaded by accelerate or never "
            "loaded: load it whole on one device, in a smaller dtype if it doesn't fit"
        )


def _hooked_transformer() -> type | tuple[()]:
    try:
        from transformer_lens import HookedTransformer
    except ImportError:  # removed in TransformerLens 4
        return ()
    return HookedTransformer  # type: ignore[no-any-return]


_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def _warn_if_centred(backend: Backend) -> None:
    if backend.model in _warned or not backend.centred:
        return
    _warned.add(backend.model)
    warnings.warn(
        "the weights of this model that write to the residual stream are centred: each of its states has mean 0, so its norms "
        "are those of the stream without its mean and not comparable with the unprocessed model's; load it with "
        "from_pretrained_no_processing (or tl_l2norm.load_model)",
        stacklevel=4,
    )
