"""Load sparse autoencoders: from folders, the hub, and SAELens' releases."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from tl_l2norm.core.errors import InputError, InputTypeError, MissingFile, MissingPackage
from tl_l2norm.core.layers import did_you_mean, layer_ranges
from tl_l2norm.core.random_draws import hash_keys
from tl_l2norm.models.sources import OURS, bundled_folder
from tl_l2norm.saes.checks import read_layer, why_unusable
from tl_l2norm.saes.config import CONFIG_FILE, parse_sae_metadata, read_json
from tl_l2norm.saes.reader import WEIGHTS_FILE, Sae, read_sae

_IN_HUB_REPO = ("cfg.json", "*/cfg.json", "*/*/cfg.json")
_OF_HOOK = re.compile(r"blocks\.\d+\.(?:attn\.|mlp\.)?hook_[a-z]+(?:_[a-z]+)*")
_LAYER_IN_ID = re.compile(r"(?:^|[^a-z0-9])layers?[._-]?(\d+)(?!\d)", re.IGNORECASE)
_SHORT_ID = re.compile(r"l(\d+)r(?:_|$)")  # Llama Scope's: "l12r_32x" is on the residual stream, "l12m_32x" on the MLP


def load_saes(
    source: str | Path,
    *,
    layers: Collection[int] | SupportsIndex | None = None,
    sae_ids: Sequence[str] | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[int, Any]:
    """SAEs on `resid_post`, by the layer that they read.

    Folders and hub repositories in SAELens' format (`cfg.json` and `sae_weights.safetensors`) are read without SAELens, so that
    features don't depend on whether it is installed; its named releases need it.

    Args:
        source: "tiny-reasoner" (ours, in the package), a folder in SAELens' format or one that holds such folders, a hub
            repository of such folders ("owner/name"), or the name of a SAELens release.
        layers: which; all that are there by default. A release needs this or `sae_ids`.
        sae_ids: which SAEs of a release or folders of a hub repository, where it has several for a layer.
        device: where the SAEs go.
        dtype: of their weights.

    Raises:
        ImportError: a release's name, and SAELens isn't installed.
        FileNotFoundError: no such folder or repository, or no SAE in it.
        ValueError: an unknown release, a layer without an SAE or with several, an SAE that doesn't read `resid_post` of the
            layer that was asked for, or one that can't be read, with the reason.

    Examples:
        >>> saes = l2.load_saes("tiny-reasoner", layers=[4, 9])
        >>> saes[9]
        Sae(topk, 128 -> 1024, blocks.9.hook_resid_post)
        >>> saes[9].encode(torch.ones(2, 128)).shape
        torch.Size([2, 1024])
    """
    wanted = None if layers is None else _layer_numbers(layers)
    chosen = [sae_ids] if isinstance(sae_ids, str) else sae_ids
    name = str(source)
    folder = bundled_folder(name) / "saes" if name in OURS else Path(source).expanduser()
    if folder.is_dir():
        if chosen is not None:
            raise InputError("sae_ids are of a release or hub repository: in a folder choose by layers")
        places = _places(folder, wanted)
    elif isinstance(source, Path) or name.startswith((".", "~", "/")):
        raise MissingFile(f"no folder of SAEs at {folder}{_near(folder)}")
    elif name.count("/") == 1:
        places = _hub_places(name, wanted, chosen)
    else:
        return _of_release(name, wanted, chosen, device=str(device), dtype=str(dtype).removeprefix("torch."))
    return {layer: read_sae(place, device=device, dtype=dtype) for layer, place in places.items()}


def _layer_numbers(layers: Any) -> list[int]:
    given = [layers]
    if not isinstance(layers, SupportsIndex) or getattr(layers, "ndim", 0) != 0:
        given = list(layers) if isinstance(layers, Iterable) else [layers]
    if not given or not all(isinstance(layer, SupportsIndex) and not isinstance(layer, bool) for layer in given):
        raise InputTypeError(f"layers are numbers, at least one, such as 3 or [3, 8], got {layers!r}")
    return sorted({operator.index(layer) for layer in given})


def require_sae_lens(what: str = "training SAEs") -> Any:
    """SAELens, or an error that says what needs it and how to get it."""
    try:
        import sae_lens
    except ImportError as error:
        raise MissingPackage(f"{what} needs SAELens: pip install 'tl_l2norm[sae]' (it needs TransformerLens 3)") from error
    return sae_lens


def _places(folder: Path, wanted: Sequence[int] | None) -> dict[int, Path]:
    """Folder of each layer's SAE."""
    files = [folder / CONFIG_FILE] if (folder / CONFIG_FILE).is_file() else sorted(folder.glob(f"*/{CONFIG_FILE}"))
    if not files:
        raise MissingFile(f"no SAE in {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} there or one folder below")
    return _by_config(str(folder), {file.parent.name: file.parent for file in files}, wanted, "name one's folder")


def _hub_places(repo: str, wanted: Sequence[int] | None, sae_ids: Sequence[str] | None) -> dict[int, Path]:
    """The same for a hub repository, from its local cache where offline; weights are fetched of the chosen ones only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: Sequence[str]) -> Path:
        try:
            return Path(snapshot_download(repo, allow_patterns=list(patterns)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            why = _near(Path(repo)) or f": {error}"
            raise MissingFile(f"no folder {repo!r} here, and no such repository from the hub{why}") from error

    root = fetch(_IN_HUB_REPO)
    folders = {
        str(file.parent.relative_to(root)): file.parent for pattern in _IN_HUB_REPO for file in sorted(root.glob(pattern))
    }
    if not folders:
        raise MissingFile(
            f"no {CONFIG_FILE} in {repo} down to two folders deep, so it is not in SAELens' format: "
            "if SAELens knows it as a release, give the release's name"
        )
    if unknown := sorted(set(sae_ids or ()) - folders.keys()):
        raise InputError(
            f"{repo} has no SAE {unknown[0]!r}{did_you_mean(unknown[0], folders)}; it has {_some(sorted(folders))}"
        )
    if sae_ids is None and wanted is None and len(folders) > 1:
        raise InputError(f"{repo} has {len(folders)} SAEs: say which, layers=[...] or sae_ids=[{next(iter(folders))!r}, ...]")
    chosen = folders if sae_ids is None else {name: folders[name] for name in sae_ids}
    places = _by_config(repo, chosen, wanted, "give sae_ids=[...]")
    fetch([str(place.relative_to(root) / WEIGHTS_FILE) for place in places.values()])
    return places


def _by_config(where: str, folders: Mapping[str, Path], wanted: Sequence[int] | None, hint: str) -> dict[int, Path]:
    """The folder of each layer that is wanted, by what their configurations say."""
    names: dict[int, list[str]] = {}
    others: dict[str, str | None] = {}
    for name, folder in folders.items():
        hook_name = parse_sae_metadata(read_json(folder / CONFIG_FILE)).hook_name
        layer = read_layer(hook_name)
        if layer is None:
            others[name] = hook_name
        else:
            names.setdefault(layer, []).append(name)
    if others and (wanted is None or not names):
        name, hook_name = next(iter(others.items()))
        raise InputError(f"{folders[name] / CONFIG_FILE}: the SAE is of {hook_name!r}; only those of resid_post can be used")
    chosen = sorted(names) if wanted is None else wanted
    if missing := [layer for layer in chosen if layer not in names]:
        raise InputError(f"{where} has no SAE of layers {layer_ranges(missing)}: it has {layer_ranges(sorted(names))}")
    for layer in chosen:
        if len(names[layer]) > 1:
            count = "two" if len(names[layer]) == 2 else len(names[layer])
            raise InputError(f"{where} has {count} SAEs of layer {layer}: {_some(names[layer], ' and ')}; {hint}")
    return {layer: folders[names[layer][0]] for layer in chosen}


def _of_release(
    release: str, wanted: Sequence[int] | None, sae_ids: Sequence[str] | None, *, device: str, dtype: str
) -> dict[int, Any]:
    """SAEs of a named release, by SAELens; each must read the layer that it was taken for."""
    ours = ", ".join(map(repr, OURS))
    told = f"{release!r} is no folder, none of ours ({ours}) and no hub repository (owner/name){_near(Path(release))}"
    lens = require_sae_lens(f"{told}; a SAELens release by its name")
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    places: dict[int, str] = {}
    for sae_id in _release_ids(release, wanted, sae_ids):
        config = load_sae_config_from_huggingface(release, sae_id)  # before the weights, which are large
        layer = _layer_of(release, sae_id, parse_sae_metadata(config).hook_name)
        if layer in places:
            raise InputError(f"{places[layer]} and {sae_id} of {release} are both of layer {layer}: give one for each layer")
        places[layer] = sae_id
    loaded = {
        layer: lens.SAE.from_pretrained(release, sae_id, device=device, dtype=dtype) for layer, sae_id in sorted(places.items())
    }
    for layer, sae in loaded.items():
        if reason := why_unusable(sae):
            raise InputError(f"{places[layer]} of {release} can't be used: {reason}")
    return loaded


def _near(folder: Path) -> str:
    """The end of a message about a place that isn't there: folders beside it that are called nearly the same, and ours."""
    beside = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    return did_you_mean(folder.name, [*(OURS if len(folder.parts) == 1 else ()), *beside])


def _layer_of(release: str, sae_id: str, hook_name: str | None) -> int:
    """The layer of a release's SAE, which its name and its configuration must agree on."""
    named, layer = _named_layer(sae_id), read_layer(hook_name)
    if layer is None:
        raise InputError(f"{sae_id} of {release} is an SAE of {hook_name!r}; only those of resid_post can be used")
    if named is not None and named != layer:
        raise InputError(
            f"{sae_id} of {release} is by its name of layer {named}, by its configuration of {hook_name}: one of them is "
            "wrong. If you know which, load it with SAELens and hand it over: saes={layer: sae}"
        )
    return layer


def _release_ids(release: str, wanted: Sequence[int] | None, sae_ids: Sequence[str] | None) -> list[str]:
    """Names of the SAEs that are meant, one for each wanted layer."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        ours = ", ".join(map(repr, OURS))
        raise InputError(
            f"{release!r} is no folder, none of ours ({ours}) and no release of SAELens"
            f"{_near(Path(release)) or did_you_mean(release, directory)}"
        )
    known = list(directory[release].saes_map)
    if sae_ids is not None:
        if missing := sorted(set(sae_ids) - set(known)):
            raise InputError(f"{release} has no SAE {missing[0]!r}{did_you_mean(missing[0], known)}; it has {_some(known)}")
        return list(sae_ids)
    if wanted is None:
        raise InputError(f"{release} has {len(known)} SAEs: say which, layers=[...] or sae_ids=[{known[0]!r}, ...]")
    return [_only_one(release, known, layer) for layer in wanted]


def _only_one(release: str, known: Sequence[str], layer: int) -> str:
    """The one SAE whose name is of a layer."""
    own = [sae_id for sae_id in known if _names_layer(sae_id, layer)]
    if len(own) > 1:
        raise InputError(f"{release} has {len(own)} SAEs whose names hold layer {layer}: give sae_ids=[...], of {_some(own)}")
    if not own:
        named = {number for sae_id in known if (number := _named_layer(sae_id)) is not None}
        told = f"its names hold {layer_ranges(sorted(named))}" if named else "its names hold no layer of resid_post"
        raise InputError(f"{release} has no SAE whose name holds layer {layer}: {told}; sae_ids=[...] are of {_some(known)}")
    return own[0]


def _named_layer(sae_id: str) -> int | None:
    """The layer that an SAE's name means: 12 of "layer_12/width_16k/average_l0_82"; None where it names none or several.

    A hook point's name means what it reads: "blocks.8.hook_resid_pre_768" is of layer 7, "blocks.8.hook_mlp_out" of none.
    """
    if of_hook := _OF_HOOK.match(sae_id):
        return read_layer(of_hook[0])
    if short := _SHORT_ID.match(sae_id):
        return int(short[1])
    numbers = set(map(int, _LAYER_IN_ID.findall(sae_id)))
    return numbers.pop() if len(numbers) == 1 else None


def _names_layer(sae_id: str, layer: int) -> bool:
    return _named_layer(sae_id) == layer


def _some(names: Sequence[str], by: str = ", ", most: int = 8) -> str:
    return by.join(names[:most]) + (f"{by}... ({len(names)} in all)" if len(names) > most else "")


def untrained_saes(saes: Mapping[int, Any], *, seed: int = 0) -> dict[int, Any]:
    """SAEs of the same kind and shape with weights as they are before training, for a control.

    A wide random dictionary follows the norm by itself: what it shows as well, training did not put there.

    Examples:
        >>> saes = l2.load_saes("tiny-reasoner", layers=9)
        >>> control = l2.saes.untrained_saes(saes, seed=1)
        >>> control[9].W_dec.shape == saes[9].W_dec.shape, control[9].cfg.metadata.note
        (True, 'untrained, seed 1')
    """
    untrained: dict[int, Any] = {}
    for layer, sae in saes.items():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(hash_keys(seed, layer)))
            with torch.device("cpu"):
                twin = _as_before_training(sae, f"untrained, seed {seed}")
        untrained[layer] = twin.to(sae.device).eval()
    return untrained


def _as_before_training(sae: Any, note: str) -> Any:
    if isinstance(sae, Sae):
        return Sae(sae.cfg.noted(note), dtype=sae.dtype)
    cfg = copy.deepcopy(sae.cfg)
    if hasattr(cfg, "device"):
        cfg.device = "cpu"  # SAELens draws where its configuration says; only the CPU's generator has our seed
    if getattr(cfg, "metadata", None) is not None:
        cfg.metadata.note = note
    return type(sae)(cfg)
