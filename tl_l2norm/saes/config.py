"""The configuration of an SAE in SAELens' format, of any version, without SAELens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tl_l2norm.core.errors import InputError, MissingFile, Unsupported

CONFIG_FILE = "cfg.json"

Kind = Literal["standard", "topk", "jumprelu", "gated"]
Scaling = Literal["none", "layer_norm", "constant_norm_rescale"]

UNFOLDED = ("expected_average_only_in", "covariance_whitening")
"""Scalings of the input that `encode` doesn't do: they belong into the weights."""

UNUSABLE: Mapping[str, str] = {
    **dict.fromkeys(
        ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
        "a transcoder writes another stream than it reads",
    ),
    "crosscoder": "a crosscoder reads several layers",
    "temporal": "a temporal SAE reads the positions before, so it can't encode a state by itself",
}
"""Architectures that can't be used at all, and why."""

_IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")  # SAELens' names while they train; saved for inference both are JumpReLU
_READ_OR_IDLE = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
    "k",
    "rescale_acts_by_decoder_norm",
    "activation_fn",
    "activation_fn_kwargs",
    "finetuning_scaling_factor",
    "sae_lens_version",
    "sae_lens_training_version",
}
_OF_TRAINING = {  # in checkpoints
    "decoder_init_norm",
    "l1_coefficient",
    "l1_warm_up_steps",
    "lp_norm",
    "use_sparse_activations",
    "aux_loss_coefficient",
    "jumprelu_init_threshold",
    "jumprelu_bandwidth",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_tanh_scale",
    "jumprelu_ste_to_input",
    "l0_coefficient",
    "l0_warm_up_steps",
    "pre_act_loss_coefficient",
    "target_l0",
}
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNote:
    """What `train_saes` notes with an SAE, beside its recipe; None for what an earlier version did not note."""

    key: str | None = None
    """Hash of all that the SAE depends on: model, prompts, recipe."""
    weights: str | None = None
    """Fingerprint of the model's weights."""
    dtype: str | None = None
    """Of the model, as torch writes it: "torch.float32"."""
    backend: str | None = None
    centred: bool | None = None
    """Whether the model's writing weights were centred."""
    sink_ratio: float | None = None
    """Over how many times the prompt's median norm states were left out."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingNote:
        """The note in a file's metadata."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True, kw_only=True)
class SaeMetadata:
    """Where an SAE belongs; None for what its file doesn't say."""

    model_name: str | None = None
    hook_name: str | None = None
    hook_head_index: int | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    dataset_path: str | None = None
    neuronpedia_id: str | None = None
    model_from_pretrained_kwargs: Mapping[str, Any] | None = None
    tl_l2norm: Mapping[str, Any] | None = None
    """`TrainingNote` and recipe of `train_saes`, as they are in the file."""
    note: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SaeMetadata:
        """The part of a file's metadata that is used."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """Sizes of an SAE and what its encoder does, under SAELens' names."""

    kind: Kind
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool = True
    normalize_activations: Scaling = "none"
    k: int | None = None
    """Active latents of a top-k SAE."""
    rescale_acts_by_decoder_norm: bool = False
    """Of a top-k SAE: latents are compared, and activations are given, as if decoder directions had norm 1."""
    metadata: SaeMetadata = SaeMetadata()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"unknown kind of SAE {self.kind!r}: there are {', '.join(get_args(Kind))}")
        if self.normalize_activations not in get_args(Scaling):
            raise InputError(f"unknown input scaling {self.normalize_activations!r}: there are {', '.join(get_args(Scaling))}")
        if (self.k is None) == (self.kind == "topk"):
            raise InputError(f"a top-k SAE, and no other, has a k: got {self.kind} and k={self.k}")
        if not (self.d_in >= 1 and self.d_sae >= 1 and 1 <= (self.k or 1) <= self.d_sae):
            raise InputError(f"sizes of an SAE are at least 1, and k at most d_sae, got {self.d_in}, {self.d_sae}, k={self.k}")

    def architecture(self) -> str:
        """The kind, under the name that SAELens' configurations have for it."""
        return self.kind

    def noted(self, note: str) -> SaeConfig:
        """The same with a note."""
        return replace(self, metadata=replace(self.metadata, note=note))


def read_sae_config(folder: Path) -> SaeConfig:
    """Configuration of the SAE in a folder.

    Raises:
        FileNotFoundError: no `cfg.json`.
        ValueError: one that is broken, or of an SAE that can't be read; the message names what.
    """
    file = folder / CONFIG_FILE
    try:
        return parse_sae_config(read_json(file))
    except Unsupported as error:
        raise Unsupported(f"{file}: {error}") from error
    except InputError as error:
        raise InputError(f"{file} is not the configuration of an SAE: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if not file.is_file():
        raise MissingFile(f"no {file.name} in {file.parent}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not the configuration of an SAE: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} is not the configuration of an SAE: it holds a {type(config).__name__}")
    return config


def parse_sae_config(config: Mapping[str, Any]) -> SaeConfig:
    """What a `cfg.json` says, written by SAELens 6 or by an earlier one (no metadata, other names).

    Raises:
        NotImplementedError: a kind of SAE, or something in it, that can't be read; the message names it.
        ValueError: sizes are missing or make no sense.
    """
    is_old = not isinstance(config.get("metadata"), Mapping)
    settings, metadata = _renamed(config), parse_sae_metadata(config)
    kind, k = _kind(settings), settings.get("k")
    if kind == "topk" and k is None:
        k = (settings.get("activation_fn_kwargs") or {}).get("k")
    if not is_old and (unknown := sorted(set(config) - _READ_OR_IDLE - _OF_TRAINING)):
        raise Unsupported(f"the SAE has settings that are not known here ({', '.join(unknown)}): {_elsewhere()}")
    _refuse_reshaping(settings, metadata)
    _refuse_other_encoders(settings, metadata)
    return SaeConfig(
        kind=kind,
        d_in=_whole("d_in", settings.get("d_in")),
        d_sae=_whole("d_sae", settings.get("d_sae")),
        apply_b_dec_to_input=_flag(settings, "apply_b_dec_to_input", True),
        normalize_activations=_scaling(settings.get("normalize_activations")),
        k=_whole("k", k) if kind == "topk" else None,
        rescale_acts_by_decoder_norm=kind == "topk" and _flag(settings, "rescale_acts_by_decoder_norm", False),
        metadata=metadata,
    )


def parse_sae_metadata(config: Mapping[str, Any]) -> SaeMetadata:
    """Where the SAE of a `cfg.json` of any version belongs; of any kind of SAE."""
    metadata = config.get("metadata")
    return SaeMetadata.of(metadata if isinstance(metadata, Mapping) else _renamed(config))


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(name, name): value for name, value in config.items()}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {value!r}, not a whole number")
    return value


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}, neither true nor false")
    return default if value is None else value


def _kind(config: Mapping[str, Any]) -> Kind:
    kind, activation = config.get("architecture", "standard"), config.get("activation_fn") or "relu"
    if kind in UNUSABLE:
        raise Unsupported(f"{UNUSABLE[kind]}: it can't be used")
    if kind in _IN_TRAINING:
        raise Unsupported(f"the SAE is still in training ({kind}): load what SAELens' save_inference_model wrote")
    if kind not in get_args(Kind):
        raise Unsupported(f"architecture {kind!r} is not one of {', '.join(get_args(Kind))}: {_elsewhere()}")
    if activation == "topk" and kind in ("standard", "topk"):  # before SAELens 6 top-k was an activation
        return "topk"
    if activation != "relu":
        raise Unsupported(f"activation function {activation!r} of architecture {kind!r} is not known here (relu, topk)")
    return cast("Kind", kind)


def _scaling(value: Any) -> Scaling:
    scaling = {None: "none", False: "none", True: UNFOLDED[0]}.get(value, value)
    if scaling in UNFOLDED:
        raise Unsupported(
            f"its input scaling ({scaling}) is not folded into its weights, encode would skip it: load what SAELens' "
            "save_inference_model wrote, or fold it with SAELens (fold_activation_norm_scaling_factor, "
            "fold_activation_whitening) and save that"
        )
    if scaling not in get_args(Scaling):
        raise Unsupported(f"input scaling {scaling!r} is not one of {', '.join(get_args(Scaling))}: {_elsewhere()}")
    return cast("Scaling", scaling)


def _refuse_reshaping(config: Mapping[str, Any], metadata: SaeMetadata) -> None:
    if config.get("reshape_activations") not in (None, "none") or "hook_z" in (metadata.hook_name or ""):
        raise Unsupported(f"it reads heads put together ({metadata.hook_name}); only SAEs of resid_post can be used")


def _refuse_other_encoders(config: Mapping[str, Any], metadata: SaeMetadata) -> None:
    """What older files say in settings of their own: a transcoder, an encoder without ReLU, a layer that isn't the hook's."""
    said = {**config, **(config["metadata"] if isinstance(config.get("metadata"), Mapping) else {})}
    written = {name: said[name] for name in ("hook_name_out", "hook_point_out", "out_hook_point") if said.get(name)}
    elsewhere = [f"{name} = {value!r}" for name, value in written.items() if value != metadata.hook_name]
    if flagged := [name for name in ("is_transcoder", "is_skip_transcoder") if _flag(said, name, False)] or elsewhere:
        raise Unsupported(f"{UNUSABLE['transcoder']} ({flagged[0]}): it can't be used")
    if said.get("d_out") not in (None, said.get("d_in")):
        raise Unsupported(f"{UNUSABLE['transcoder']} (d_out = {said['d_out']!r}): it can't be used")
    if plain := [name for name in ("post_relu", "apply_relu", "use_relu") if not _flag(said, name, True)]:
        raise Unsupported(f"its latents have no ReLU ({plain[0]} = false): {_elsewhere()}")
    named = re.match(r"blocks\.(\d+)\.(hook_resid_pre)?", metadata.hook_name or "")
    layer = said.get("hook_layer", said.get("hook_point_layer"))
    if (
        named and layer is not None and layer not in (int(named[1]), int(named[1]) - bool(named[2]))
    ):  # of the block, of the state
        raise InputError(f"hook_layer is {layer!r}, hook_name {metadata.hook_name!r}: one of them is wrong")


def _elsewhere() -> str:
    return "load it with SAELens, if that knows it, and hand the object over: saes={layer: sae}"
