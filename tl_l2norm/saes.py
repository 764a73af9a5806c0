"""Load sparse autoencoders and see that they fit the model."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl_l2norm.backends import Backend
from tl_l2norm.draws import hash_keys
from tl_l2norm.errors import InputError, InputTypeError, MissingFile, MissingPackage
from tl_l2norm.fingerprint import same_weights
from tl_l2norm.hook_names import did_you_mean, layer_ranges, resid_post
from tl_l2norm.models import OURS, bundled_folder
from tl_l2norm.protocols import SparseAutoencoder

_UNFOLDED = ("expected_average_only_in", "covariance_whitening")
_LAYER_IN_ID = re.compile(r"(?:^|[^a-z0-9])(?:layers?|blocks|l|resid_post_layer)[._-]?(\d+)(?=[^0-9]|$)", re.IGNORECASE)


def load_saes(
    source: str | Path,
    *,
    layers: Collection[int] | int | None = None,
    sae_ids: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[int, Any]:
    """SAEs on `resid_post`, by the layer that they read.

    Args:
        source: "tiny-reasoner" (ours, in the package), a folder in SAELens' format (`cfg.json` and `sae_weights.safetensors`)
            or one that holds such folders, or the name of a SAELens release, from the hub or its local cache.
        layers: which; all that are there by default. A release needs this or `sae_ids`.
        sae_ids: which SAEs of a release, where it has several for a layer.
        device: where the SAEs go.
        dtype: of their weights.

    Raises:
        ImportError: SAELens isn't installed.
        FileNotFoundError: no such folder, or no SAE in it.
        ValueError: an unknown release, a layer without an SAE or with several, an SAE that doesn't read `resid_post`.
    """
    lens = require_sae_lens()
    wanted = None if layers is None else sorted({layers} if isinstance(layers, int) else set(layers))
    if wanted is not None and not wanted:
        raise InputError("no layers given")
    options = {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    folder = bundled_folder(str(source)) / "saes" if str(source) in OURS else Path(source).expanduser()
    if folder.is_dir():
        if sae_ids is not None:
            raise InputError("sae_ids are of a release: in a folder choose by layers")
        places = _places(folder, wanted)
        return {layer: lens.SAE.load_from_disk(place, **options) for layer, place in places.items()}
    if isinstance(source, Path) or str(source).startswith((".", "~", "/")):
        raise MissingFile(f"no folder of SAEs at {folder}")
    ids = _release_ids(str(source), wanted, sae_ids)
    return _by_layer([(sae_id, lens.SAE.from_pretrained(str(source), sae_id, **options)) for sae_id in ids])


def require_sae_lens() -> Any:
    """SAELens, or an error that says how to get it."""
    try:
        import sae_lens
    except ImportError as error:
        raise MissingPackage("SAEs need SAELens: pip install 'tl_l2norm[sae]' (it needs TransformerLens 3)") from error
    return sae_lens


def _places(folder: Path, wanted: Sequence[int] | None) -> dict[int, Path]:
    """Folder of each layer's SAE."""
    files = [folder / "cfg.json"] if (folder / "cfg.json").is_file() else sorted(folder.glob("*/cfg.json"))
    if not files:
        raise MissingFile(f"no SAE in {folder}: expected cfg.json and sae_weights.safetensors there or one folder below")
    found: dict[int, Path] = {}
    for file in files:
        try:
            config = json.loads(file.read_text())
            hook_name = (config.get("metadata") or config).get("hook_name")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise InputError(f"{file} is not the configuration of an SAE: {error}") from error
        layer = read_layer(hook_name)
        if layer is None:
            raise InputError(f"{file}: the SAE is of {hook_name!r}; only those of resid_post can be used")
        if layer in found:
            raise InputError(f"{folder} has two SAEs of layer {layer}: {found[layer].name} and {file.parent.name}; name one's")
        found[layer] = file.parent
    chosen = sorted(found) if wanted is None else wanted
    if missing := [layer for layer in chosen if layer not in found]:
        raise InputError(f"{folder} has no SAE of layers {layer_ranges(missing)}: it has {layer_ranges(sorted(found))}")
    return {layer: found[layer] for layer in chosen}


def _release_ids(release: str, wanted: Sequence[int] | None, sae_ids: Sequence[str] | None) -> list[str]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        ours = ", ".join(map(repr, OURS))
        raise InputError(
            f"{release!r} is no folder, none of ours ({ours}) and no release of SAELens{did_you_mean(release, directory)}"
        )
    known = list(directory[release].saes_map)
    if sae_ids is not None:
        if missing := sorted(set(sae_ids) - set(known)):
            raise InputError(f"{release} has no SAE {missing[0]!r}: it has {', '.join(known[:8])}, ...")
        return list(sae_ids)
    if wanted is None:
        raise InputError(f"{release} has {len(known)} SAEs: say which, layers=[...] or sae_ids=[{known[0]!r}, ...]")
    chosen = []
    for layer in wanted:
        own = [sae_id for sae_id in known if _names_layer(sae_id, layer)]
        if len(own) != 1:
            several = (
                f"has {len(own)} SAEs whose names hold layer {layer}" if own else f"has no SAE whose name holds layer {layer}"
            )
            raise InputError(f"{release} {several}: give sae_ids=[...], of {', '.join((own or known)[:8])}")
        chosen += own
    return chosen


def _names_layer(sae_id: str, layer: int) -> bool:
    """Whether an SAE's name is the layer's hook point, or holds its number, such as "layer_12/width_16k/canonical"."""
    if (of_hook := read_layer(sae_id)) is not None:
        return of_hook == layer
    return str(layer) in _LAYER_IN_ID.findall(sae_id)


def _by_layer(loaded: Sequence[tuple[str, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for sae_id, sae in loaded:
        layer = read_layer(sae.cfg.metadata.hook_name)
        if layer is None:
            raise InputError(f"{sae_id} is an SAE of {sae.cfg.metadata.hook_name!r}; only those of resid_post can be used")
        if layer in found:
            raise InputError(f"two of the SAEs are of layer {layer}: give one for each layer")
        found[layer] = sae
    return dict(sorted(found.items()))


def untrained_saes(saes: Mapping[int, Any], *, seed: int = 0) -> dict[int, Any]:
    """SAEs of the same kind and shape with weights as they are before training, for a control.

    A wide random dictionary follows the norm by itself: what it shows as well, training did not put there.
    """
    found: dict[int, Any] = {}
    for layer, sae in saes.items():
        cfg = copy.deepcopy(sae.cfg)
        if getattr(cfg, "metadata", None) is not None:
            cfg.metadata.note = f"untrained, seed {seed}"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(hash_keys(seed, layer)))
            with torch.device("cpu"):
                twin = type(sae)(cfg)
        found[layer] = twin.to(sae.device).eval()
    return found


def read_layer(hook_name: str | None) -> int | None:
    """The layer whose `resid_post` a hook name means, under any of its names: the next block's input is the same tensor."""
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_resid_post|hook_out|hook_resid_pre|hook_in)", hook_name or "")
    if match is None:
        return None
    layer = int(match[1]) - (match[2] in ("hook_resid_pre", "hook_in"))
    return layer if layer >= 0 else None


def check_saes(backend: Backend, saes: Mapping[int, SparseAutoencoder]) -> dict[int, SparseAutoencoder]:
    """SAEs that fit the model, by layer.

    Raises:
        TypeError: not a mapping from layer to SAE.
        ValueError: one that doesn't fit, with the reason.
    """
    if not isinstance(saes, Mapping):
        raise InputTypeError(f"saes are given by layer, {{layer: sae}}, got {type(saes).__name__}")
    for layer, sae in saes.items():
        if not (isinstance(sae, nn.Module) and hasattr(sae, "encode") and hasattr(sae, "cfg")):
            raise InputTypeError(f"saes[{layer}] is a {type(sae).__name__}, not an SAE")
        if reason := _misfit(backend, layer, sae):
            raise InputError(f"the SAE for layer {layer} doesn't fit: {reason}")
        _warn_of_another_model(backend, layer, sae)
    return dict(sorted(saes.items()))


def _misfit(backend: Backend, layer: int, sae: Any) -> str | None:
    """Why an SAE can't be used at this layer of this model."""
    cfg = sae.cfg
    meta = getattr(cfg, "metadata", None)
    hook_name = getattr(meta, "hook_name", None)
    ours = training_metadata(sae)
    centred = (getattr(meta, "model_from_pretrained_kwargs", None) or {}).get("center_writing_weights", ours.get("centred"))
    reasons = {
        f"the model has layers 0 to {backend.n_layers - 1}": not 0 <= layer < backend.n_layers,
        f"it reads states of width {cfg.d_in}, the stream has {backend.d_model}": cfg.d_in != backend.d_model,
        f"it is of {hook_name}, not of {resid_post(layer)}": hook_name is not None and read_layer(hook_name) != layer,
        "it is of one attention head": getattr(meta, "hook_head_index", None) is not None,
        "it reads heads put together (hook_z)": getattr(cfg, "reshape_activations", "none") not in (None, "none"),
        "it is still in training (a TopK's result there depends on the batch): load what save_inference_model wrote": hasattr(
            sae, "training_forward_pass"
        ),
        f"its input scaling ({getattr(cfg, 'normalize_activations', None)}) is not folded into its weights, encode would skip "
        "it: call fold_activation_norm_scaling_factor first, or load what save_inference_model wrote": getattr(
            cfg, "normalize_activations", None
        )
        in _UNFOLDED,
        "it was trained on centred weights (center_writing_weights), this model is loaded without": bool(centred)
        and not backend.centred,
        "it was trained without center_writing_weights, this model is loaded with": centred is False and backend.centred,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _warn_of_another_model(backend: Backend, layer: int, sae: Any) -> None:
    """Names of one model differ by who names it, and fine-tuned ones take another's SAEs: no reason to refuse."""
    ours = training_metadata(sae)
    if ours.get("weights") and backend.fingerprint and ours.get("dtype") == str(backend.dtype):
        if not same_weights(ours["weights"], backend.fingerprint, same_kind=ours.get("backend") == backend.name):
            warnings.warn(
                f"the SAE for layer {layer} was trained on other weights (fingerprint {ours['weights']}) than this model's "
                f"({backend.fingerprint})",
                stacklevel=5,
            )
        return
    name = getattr(getattr(sae.cfg, "metadata", None), "model_name", None)
    if name and _short(name) != _short(backend.model_name):
        warnings.warn(f"the SAE for layer {layer} was trained on {name}, the model is {backend.model_name}", stacklevel=5)


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()


def training_metadata(sae: Any) -> Mapping[str, Any]:
    """What `train_saes` noted with an SAE; empty for those of others."""
    return getattr(getattr(sae.cfg, "metadata", None), "tl_l2norm", None) or {}


def sae_key(sae: Any) -> str:
    """Hash of an SAE's weights and configuration."""
    found = hashlib.sha256(describe_sae(sae).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        found.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def describe_sae(sae: Any) -> str:
    """An SAE in a line: architecture, width, hook point, model."""
    cfg, meta = sae.cfg, getattr(sae.cfg, "metadata", None)
    kind = cfg.architecture() if hasattr(cfg, "architecture") else type(sae).__name__
    where = getattr(meta, "hook_name", None) or "unnamed hook point"
    model = getattr(meta, "model_name", None) or "unnamed model"
    scaled = getattr(cfg, "normalize_activations", "none")
    notes = ["" if scaled == "none" else f"input {scaled}", getattr(meta, "note", None)]
    return ", ".join([str(kind), f"{cfg.d_sae} latents", f"{where} of {model}", *filter(None, notes)])
