"""A model's twin with weights drawn anew."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.presets import keep_preset, kept_preset
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.bridging import make_bridge
from tl_l2norm.models.hooked import make_hooked, new_hooked
from tl_l2norm.models.sources import remember_source


def random_twin(model: Any, *, seed: int = 0) -> Any:
    """The same model with weights drawn anew, for a control: what a measure finds in it, training did not put there.

    SAEs trained on random weights look as interpretable as those of trained models (Heap et al., arXiv 2501.17727). The
    twin has the model's architecture, configuration, tokenizer, dtype, device and backend, and its name followed by
    "(random weights, seed ...)", so that its norms are never taken for the model's. It is unprocessed, as `load_model` loads.

    Weights are drawn in float32 on the CPU as Hugging Face initialises the architecture: the same on both backends for one
    seed, and rounded to the model's dtype. A `HookedTransformer` that `load_model` did not load doesn't say what it was made
    from: its twin is drawn as TransformerLens initialises its `cfg`, other weights than the bridge's, embedding and unembedding
    not tied.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`; it stays as it is.
        seed: of the weights. The global random state stays as it is.

    Raises:
        TypeError: no such model, or a bridge that wraps no Hugging Face model.
        ValueError: a bridge without a tokenizer, or of quantised weights.

    Examples:
        >>> twin = l2.models.random_twin(model, seed=1)
        >>> twin.cfg.model_name, twin.W_E.shape == model.W_E.shape, torch.equal(twin.W_E, model.W_E)
        ('tiny-reasoner (random weights, seed 1)', True, False)
    """
    backend = backend_of(model)
    name = f"{backend.model_name.partition(_TWIN)[0]}{_TWIN}, seed {seed})"
    tokenizer = _copied(model.tokenizer)
    if backend.name == "bridge" and tokenizer is None:
        raise InputError("the model has no tokenizer, and a TransformerBridge isn't made without: set model.tokenizer")
    with _python_random_kept(), torch.random.fork_rng(devices=[]):  # around the wrapping too, which makes layers of its own
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        if backend.name == "bridge":
            hf_model = _drawn(_origin(model.original_model), backend.dtype)
            twin = make_bridge(hf_model, tokenizer, name, backend.device, backend.dtype)
        elif model in _made_from:
            twin = make_hooked(_drawn(_made_from[model], backend.dtype), tokenizer, name, backend.device, backend.dtype)
            _made_from[twin] = _made_from[model]
        else:
            twin = _redrawn(model.cfg, tokenizer, name)
    keep_preset(twin, kept_preset(model))
    remember_source(twin, "its weights were drawn, no file has them")
    if tokenizer is not None:
        tokenizer.init_kwargs = copy.deepcopy(model.tokenizer.init_kwargs)
        tokenizer.padding_side = model.tokenizer.padding_side
    return twin


@contextmanager
def _python_random_kept() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def remember_origin(model: Any, hf_model: Any) -> None:
    """Note what a HookedTransformer was made from: it keeps nothing of it."""
    _made_from[model] = _origin(hf_model)


class _Origin(NamedTuple):
    """What a Hugging Face model was made from."""

    architecture: type
    config: Any
    generation_config: Any


_TWIN = " (random weights"
_made_from: weakref.WeakKeyDictionary[Any, _Origin] = weakref.WeakKeyDictionary()


def _copied(tokenizer: Any) -> Any:
    """A copy that TransformerLens takes as it is: else it reads the files again, and adds BOS where the model's may not."""
    own = copy.deepcopy(tokenizer)
    if own is not None:
        own.init_kwargs["add_bos_token"] = True
    return own


def _origin(hf_model: Any) -> _Origin:
    from transformers import PreTrainedModel

    if not isinstance(hf_model, PreTrainedModel):
        raise InputTypeError(
            f"the bridge wraps a {type(hf_model).__name__}, not a Hugging Face model: how to draw it isn't known"
        )
    return _Origin(type(hf_model), copy.deepcopy(hf_model.config), copy.deepcopy(hf_model.generation_config))


def _drawn(origin: _Origin, dtype: torch.dtype) -> Any:
    if getattr(origin.config, "quantization_config", None) is not None:
        raise InputError("the model is quantised, its twin would not be: load it unquantised")
    with torch.device("cpu"):
        hf_model = origin.architecture(copy.deepcopy(origin.config))
    for weight in hf_model.parameters():  # buffers, such as rotary frequencies, stay as exact as in a loaded model
        weight.data = weight.data.to(dtype)
    hf_model.config.dtype = dtype
    hf_model.generation_config = copy.deepcopy(origin.generation_config)
    return hf_model.eval()


def _redrawn(cfg: Any, tokenizer: Any, name: str) -> Any:
    """A `HookedTransformer` made of another's configuration."""
    cfg = copy.deepcopy(cfg)
    cfg.model_name, cfg.init_weights, cfg.seed = name, True, None
    if tokenizer is None:
        cfg.tokenizer_name = None  # by which it would be loaded
    with torch.device("cpu"):
        return new_hooked(cfg, tokenizer).eval()
