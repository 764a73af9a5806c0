"""What a model's files say, for an engine that reads them by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.models.adapters import find_adapter
from tl_l2norm.models.fingerprint import files_fingerprint
from tl_l2norm.models.generation_config import require_readable
from tl_l2norm.models.reading import read_tokenizer
from tl_l2norm.models.sources import Source, unreadable

_FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A folder of config, tokenizer and safetensors, and how they are read."""

    folder: Path
    name: str
    dtype: torch.dtype
    config: Any
    generation_config: Any
    tokenizer: Any
    fingerprint: str
    """As a bridge on the same weights has it, as far as two kinds of model have it in common."""
    centred: bool

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a turn by the generation config."""
        ends = self.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def read_files(source: Source, dtype: torch.dtype) -> ModelFiles:
    """What there is to know of a model before an engine loads it.

    Raises:
        ValueError: files that can't be read.
        NotImplementedError: a kind of model or of files that an engine isn't checked with.
    """
    from transformers import AutoConfig, GenerationConfig

    if source.kind == "gguf":
        raise Unsupported(f"vLLM doesn't read GGUF here: load_model({source.where!r}), or give a folder with safetensors")
    try:
        folder = Path(source.where) if source.kind == "folder" else _fetched(source.where)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        require_readable(str(folder), False)
        ends = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if ends else GenerationConfig.from_model_config(config)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(source.where, error) from error
    _require_checked(source, folder, config)
    return ModelFiles(
        folder=folder,
        name=source.name,
        dtype=dtype,
        config=config,
        generation_config=generation,
        tokenizer=read_tokenizer(str(folder), False),
        fingerprint=files_fingerprint(_weights(folder, dtype), config.to_diff_dict()),
        centred=_centred(folder),
    )


def _fetched(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(str(error)) from error


def _require_checked(source: Source, folder: Path, config: Any) -> None:
    """Refuse by name what would be read, or computed, in another way than on the bridge."""
    where = source.where
    if find_adapter(str(folder), False) is not None:
        raise Unsupported(f"{where} is an adapter: merge it into its base, save that and give the folder")
    if config.get_text_config() is not config:
        raise Unsupported(f"{config.model_type} has other towers than text: load_model({where!r}) takes its text part")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"the weights in {where} are quantised: take the model's unquantised checkpoint")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    if wrong := [kind["rope_type"] for kind in kinds if kind.get("rope_type") in ("longrope", "dynamic")]:
        raise Unsupported(
            f"vLLM rotates positions of {wrong[0]!r} by its longest text and not by each text's length: load_model({where!r})"
        )
    if not any(folder.glob("*.safetensors")):
        raise unreadable(where, OSError("no *.safetensors"))


def _weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The model's weights one by one, in the order of their names."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                if not name.endswith("inv_freq"):
                    yield name, weights.get_tensor(name).to(dtype)


def _centred(folder: Path) -> bool:
    """Whether the embeddings in the files have mean 0, as those that TransformerLens centred and somebody saved."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                if name.endswith(_EMBEDDINGS):
                    first = weights.get_slice(name)[:256].float()
                    return bool(first.mean(-1).abs().max() < 1e-3 * first.std())
    return False
