"""Whether an SAE fits the model, and which one it is."""

from __future__ import annotations

import hashlib
import operator
import re
import warnings
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.identity import same_weights
from tl_l2norm.core.layers import resid_post
from tl_l2norm.core.protocols import SparseAutoencoder
from tl_l2norm.models.described import Described
from tl_l2norm.saes.config import UNFOLDED, UNUSABLE, TrainingNote

_DEFAULTS: Mapping[str, Any] = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "k": None,
    "rescale_acts_by_decoder_norm": False,
}
"""Settings beside the weights, with what a configuration without them means."""

_NO_SETTINGS = {"kind", "d_in", "d_sae", "dtype", "device", "metadata", "reshape_activations"}  # said elsewhere or idle


def read_layer(hook_name: str | None) -> int | None:
    """The layer whose `resid_post` a hook name means, under any of its names: the next block's input is the same tensor."""
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_resid_post|hook_out|hook_resid_pre|hook_in)", hook_name or "")
    if match is None:
        return None
    layer = int(match[1]) - (match[2] in ("hook_resid_pre", "hook_in"))
    return layer if layer >= 0 else None


def check_saes(backend: Described, saes: Mapping[Any, Any]) -> dict[int, SparseAutoencoder]:
    """SAEs that fit the model, by layer.

    Raises:
        TypeError: not a mapping from layer to SAE.
        ValueError: one that doesn't fit, with the reason.
    """
    if not isinstance(saes, Mapping):
        raise InputTypeError(f"saes are given by layer, {{layer: sae}}, got {type(saes).__name__}")
    if wrong := [layer for layer in saes if isinstance(layer, bool) or not hasattr(layer, "__index__")]:
        raise InputTypeError(f"saes are given by layer, {{layer: sae}}, got {wrong[0]!r} for a layer")
    by_layer = {operator.index(layer): sae for layer, sae in saes.items()}
    for layer, sae in by_layer.items():
        if not (isinstance(sae, nn.Module) and hasattr(sae, "encode") and hasattr(sae, "cfg")):
            raise InputTypeError(f"saes[{layer}] is a {type(sae).__name__}, not an SAE")
        if reason := _misfit(backend, layer, sae):
            raise InputError(f"the SAE for layer {layer} doesn't fit: {reason}")
        _warn_of_another_model(backend, layer, sae)
    return dict(sorted(by_layer.items()))


def why_unusable(sae: Any) -> str | None:
    """Why an SAE can't be used at any layer of any model; None where it can."""
    cfg = sae.cfg
    kind = cfg.architecture() if hasattr(cfg, "architecture") else ""
    scaling = getattr(cfg, "normalize_activations", None)
    reasons = {
        "it is of one attention head": getattr(getattr(cfg, "metadata", None), "hook_head_index", None) is not None,
        "it reads heads put together (hook_z)": getattr(cfg, "reshape_activations", "none") not in (None, "none"),
        "it is still in training (a TopK's result there depends on the batch): load what save_inference_model wrote": hasattr(
            sae, "training_forward_pass"
        ),
        UNUSABLE.get(kind, ""): kind in UNUSABLE,
        f"its input scaling ({scaling}) is not folded into its weights, encode would skip it: call "
        "fold_activation_norm_scaling_factor first, or load what save_inference_model wrote": scaling in UNFOLDED,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _misfit(backend: Described, layer: int, sae: Any) -> str | None:
    """Why an SAE can't be used at this layer of this model."""
    cfg = sae.cfg
    meta = getattr(cfg, "metadata", None)
    hook_name = getattr(meta, "hook_name", None)
    loaded_with = getattr(meta, "model_from_pretrained_kwargs", None) or {}
    centred = loaded_with.get("center_writing_weights", training_note(sae).centred)
    reasons = {
        f"the model has layers 0 to {backend.n_layers - 1}": not 0 <= layer < backend.n_layers,
        f"it reads states of width {cfg.d_in}, the stream has {backend.d_model}": cfg.d_in != backend.d_model,
        f"it is of {hook_name}, not of {resid_post(layer)}": hook_name is not None and read_layer(hook_name) != layer,
        "it was trained on centred weights (center_writing_weights), this model is loaded without": bool(centred)
        and not backend.centred,
        "it was trained without center_writing_weights, this model is loaded with": centred is False and backend.centred,
    }
    return why_unusable(sae) or next((reason for reason, holds in reasons.items() if holds), None)


def _warn_of_another_model(backend: Described, layer: int, sae: Any) -> None:
    """Names of one model differ by who names it, and fine-tuned ones take another's SAEs: no reason to refuse."""
    note = training_note(sae)
    if note.weights and backend.fingerprint and note.dtype == str(backend.dtype):
        if not same_weights(note.weights, backend.fingerprint, same_kind=note.backend == backend.name):
            warnings.warn(
                f"the SAE for layer {layer} was trained on other weights (fingerprint {note.weights}) than this model's "
                f"({backend.fingerprint})",
                stacklevel=5,
            )
        return
    name = getattr(getattr(sae.cfg, "metadata", None), "model_name", None)
    if name and _short(name) != _short(backend.model_name):
        warnings.warn(f"the SAE for layer {layer} was trained on {name}, the model is {backend.model_name}", stacklevel=5)


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()


def training_note(sae: Any) -> TrainingNote:
    """What `train_saes` noted with an SAE; a note of nothing for those of others."""
    return TrainingNote.of(getattr(getattr(sae.cfg, "metadata", None), "tl_l2norm", None) or {})


def unit_directions(sae: Any) -> Float[Tensor, "d_sae d_in"]:
    """What each latent writes at activation 1: its decoder row, over the row's norm where activations are given so."""
    decoder: Tensor = sae.W_dec.detach()
    return decoder / decoder.norm(dim=-1, keepdim=True) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else decoder


def sae_key(sae: Any) -> str:
    """Hash of an SAE's weights and of all in its configuration that changes what it encodes; the same whoever loaded it."""
    settings = dict(_DEFAULTS) | {name: value for name, value in vars(sae.cfg).items() if name not in _NO_SETTINGS}
    digest = hashlib.sha256(f"{describe_sae(sae)}, {sorted(settings.items())}".encode())
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def describe_sae(sae: Any) -> str:
    """An SAE in a line: architecture, width, hook point, model."""
    cfg, meta = sae.cfg, getattr(sae.cfg, "metadata", None)
    kind = cfg.architecture() if hasattr(cfg, "architecture") else type(sae).__name__
    where = getattr(meta, "hook_name", None) or "unnamed hook point"
    model = getattr(meta, "model_name", None) or "unnamed model"
    scaled = getattr(cfg, "normalize_activations", "none")
    notes = ["" if scaled == "none" else f"input {scaled}", getattr(meta, "note", None)]
    return ", ".join([str(kind), f"{cfg.d_sae} latents", f"{where} of {model}", *filter(None, notes)])
