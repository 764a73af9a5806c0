"""What a GGUF file says of its model and transformers leaves out: taken over, or refused by name."""

from __future__ import annotations

import math
from typing import Any

from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.text.gguf_header import Header

# Entries, by the attributes that mean the same in a configuration. Those that it lacks are refused.
_SAME = {
    "attention.sliding_window": ("sliding_window",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
# Files often have both, of which the model uses one.
_EPSILONS = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
}
_ALL_LAYERS_SLIDE = ("mistral", "phi3", "starcoder2")
"""Model types whose every layer has the window, so that it can be taken over."""
_SCALES = ("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale")
_YARN_NEUTRAL = {
    "attn_factor": (0, 1),
    "yarn_attn_factor": (0, 1),
    "yarn_ext_factor": (-1, 1),
    "yarn_log_multiplier": (0,),
}
_REQUIRED = {"attention.head_count": "num_attention_heads", "context_length": "max_position_embeddings"}
"""Entries without which a configuration keeps a number of its own, which may fit by accident."""
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_BIG_GEMMA = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the 27B models, whose attention is scaled by another width than the heads', which no entry says."""


def complete(config: Any, header: Header, file: str) -> None:
    """Take over what transformers didn't from the header, in place, before the model is made.

    Raises:
        Unsupported: the header has what this configuration can't say, which would change the model silently.
    """
    _Completion(config, header, file).run()


def require_places(hf_model: Any, header: Header, file: str) -> None:
    """Refuse a file with tensors that the model has no place for: transformers drops them without a word.

    Raises:
        Unsupported: with their names.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
    places = {name.removesuffix(".weight") for name in get_gguf_hf_weights_map(hf_model, reader)}  # experts have it or not
    tensors = header.tensors - set(_ROPE_TENSORS)  # those are the configuration's
    if dropped := sorted(name for name in tensors if name.removesuffix(".weight") not in places):
        raise Unsupported(
            f"{file} has {len(dropped)} tensors that {type(hf_model).__name__} has no place for ({', '.join(dropped[:3])}"
            f"{', ...' if len(dropped) > 3 else ''}), so that it would be another model: take its safetensors checkpoint"
        )


class _Completion:
    def __init__(self, config: Any, header: Header, file: str) -> None:
        self.config, self.header, self.file = config, header, file
        self.entries = header.entries

    def run(self) -> None:
        self._require()
        self._heads()
        for key, names in _EPSILONS.items():
            for name in names:
                if key in self.entries and hasattr(self.config, name):
                    self._set(name, self.entries[key])
        for key, names in _SAME.items():
            if self._says(key):
                self._same(key, names)
        for key in _SCALES[:3]:
            if self._says(key) and not hasattr(self.config, key):
                raise self._refused(key)
        if isinstance(getattr(self.config, "rope_parameters", None), dict):
            self._rope()

    def _require(self) -> None:
        """What must be there, and what its absence means."""
        epsilons = [name for names in _EPSILONS.values() for name in names]
        required: dict[str, tuple[str, ...]] = {key: (key,) for key, name in _REQUIRED.items() if hasattr(self.config, name)}
        if any(hasattr(self.config, name) for name in epsilons):
            required["attention.layer_norm_rms_epsilon"] = tuple(_EPSILONS)
        for key, either in required.items():
            if not any(map(self._has, either)):
                raise self._lacks(key)
        shared = "attention.head_count_kv"
        if self._has(shared) or not hasattr(self.config, "num_key_value_heads"):
            return
        if self.header.architecture == "llama":  # its reader leaves rows of queries and keys in the file's order then
            raise self._lacks(shared)
        self._set("num_key_value_heads", self.entries["attention.head_count"])

    def _has(self, key: str) -> bool:
        return key in self.entries or key in self.header.lists

    def _lacks(self, key: str) -> InputError:
        return InputError(
            f"{self.file} lacks {self.header.architecture}.{key}, without which transformers would read another model: write "
            "the entry, or take the model's safetensors checkpoint"
        )

    def _says(self, key: str) -> bool:
        """Whether there is such an entry, one that does something."""
        value = self.entries.get(key, 0)
        if key == "attention.sliding_window":
            return 0 < int(value) < int(self.entries.get("context_length", math.inf) if value else 0)
        return value != 0 and not (key in _SCALES and value == 1)

    def _same(self, key: str, names: tuple[str, ...]) -> None:
        value, known = self.entries[key], [name for name in names if getattr(self.config, name, None) is not None]
        if any(_equal(getattr(self.config, name), value) for name in known):
            return
        slides = key == "attention.sliding_window" and self.config.model_type in _ALL_LAYERS_SLIDE
        if not known and not slides:
            raise self._refused(key)
        self._set(names[0] if slides else known[0], value)

    def _heads(self) -> None:
        """Width of the heads, and by what their products are scaled."""
        key, config = "attention.key_length", self.config
        width = self.entries.get(key, self._width())
        if key in self.entries and not _equal(self._width(), width):
            name = self._width_name()
            if name is None:
                raise self._refused(key)
            self._set(name, width)
        if not _equal(self.entries.get("attention.value_length", width), width):
            raise self._refused("attention.value_length")
        if config.model_type in _BIG_GEMMA:
            big = config.num_hidden_layers == _BIG_GEMMA[config.model_type]
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if big else int(width)
        if self._says("attention.scale") and not _equal(self.entries["attention.scale"], float(width) ** -0.5):
            raise self._refused("attention.scale")

    def _width_name(self) -> str | None:
        names = ("global_head_dim", "head_dim")
        return next((name for name in names if getattr(self.config, name, None) is not None), None)

    def _width(self) -> int:
        name = self._width_name()
        return int(getattr(self.config, name) if name else self.config.hidden_size // self.config.num_attention_heads)

    def _rope(self) -> None:
        """Rotation of the layers that attend to everything, and of those with a window."""
        nested = self.config.rope_parameters
        rope = nested.get("full_attention", nested)
        if tensors := [name for name in _ROPE_TENSORS if name in self.header.tensors]:
            if rope["rope_type"] == "default":
                raise self._refused(tensors[0])
        elif rope["rope_type"] == "default":
            self._rotated(rope)
        if "rope.freq_base" in self.entries:
            rope["rope_theta"] = float(self.entries["rope.freq_base"])
        if "rope.freq_base_swa" in self.entries and "sliding_attention" in nested:
            nested["sliding_attention"]["rope_theta"] = float(self.entries["rope.freq_base_swa"])
        self._scaling(rope)

    def _rotated(self, rope: dict[str, Any]) -> None:
        """How much of a head is rotated."""
        rotated, width = int(self.entries.get("rope.dimension_count", 0)), self._width()
        if not rotated or rotated == int(width * rope.get("partial_rotary_factor", 1.0)):
            return
        if getattr(self.config, "rotary_dim", None) == rotated:
            return
        if "partial_rotary_factor" not in rope:
            raise self._refused("rope.dimension_count")
        rope["partial_rotary_factor"] = rotated / width

    def _scaling(self, rope: dict[str, Any]) -> None:
        legacy = float(self.entries.get("rope.scale_linear", 0))
        factor = float(self.entries.get("rope.scaling.factor", 0)) or legacy
        kind = str(self.entries.get("rope.scaling.type", "linear" if factor else "none"))
        if kind == "none" or (kind in ("linear", "yarn") and factor in (0, 1)):
            return
        if kind not in ("linear", "yarn"):
            raise self._refused("rope.scaling.type")
        own: dict[str, Any] = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            own |= self._yarn()
        if all(rope.get(name) == value for name, value in own.items()):
            return
        if rope["rope_type"] != "default":
            raise self._refused("rope.scaling.type" if "rope.scaling.type" in self.entries else "rope.scaling.factor")
        rope |= own

    def _yarn(self) -> dict[str, Any]:
        for name, neutral in _YARN_NEUTRAL.items():
            if self.entries.get(f"rope.scaling.{name}", neutral[0]) not in neutral:
                raise self._refused(f"rope.scaling.{name}")
        length = self.entries.get("rope.scaling.original_context_length", self.config.max_position_embeddings)
        betas = {name: self.entries.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        said = {name: float(value) for name, value in betas.items() if value is not None}
        return {"original_max_position_embeddings": int(length), **said}

    def _set(self, name: str, value: int | float | str) -> None:
        if not _equal(getattr(self.config, name, None), value):
            setattr(self.config, name, value)

    def _refused(self, name: str) -> Unsupported:
        key = f"{self.header.architecture}.{name}"
        told = f"{key} = {self.entries[name]!r}" if name in self.entries else f"a tensor {name!r}"
        return Unsupported(
            f"{self.file} has {told}, which transformers leaves out when it reads GGUF, so that it would be another model: "
            "take the model's safetensors checkpoint"
        )


def _equal(one: Any, other: Any) -> bool:
    """Numbers in a header are of single precision."""
    return one is not None and math.isclose(float(one), float(other), rel_tol=1e-5)
