"""Read a model's files as Hugging Face does: plain weights, their adapter merged, the text part of a multimodal model."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from tl_l2norm.core.bars import without_bars
from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.models.adapters import find_adapter, merge_adapter, require_plain
from tl_l2norm.models.generation_config import require_readable
from tl_l2norm.models.gguf_config import complete, require_places
from tl_l2norm.models.gguf_once import parsed_once
from tl_l2norm.models.sources import Source, find_source, unreadable
from tl_l2norm.models.text_part import text_part
from tl_l2norm.text.gguf_header import read_header, turn_end_ids

_BARS = ("transformers.core_model_loading", "transformers.modeling_gguf_pytorch_utils")


class Plain(NamedTuple):
    """A Hugging Face model as its files have it."""

    model: Any
    tokenizer: Any
    unused: tuple[str, ...] = ()
    """Names of weights in the files that the model has no place for."""


def read(source: Source, dtype: torch.dtype, *, download: bool = True, progress: bool = False) -> Plain:
    """The model and its tokenizer, on the CPU. No code from a hub is run, nothing is installed, nothing unpickled.

    Args:
        source: where the files are.
        dtype: of the weights.
        download: whether a hub may be asked for what the local cache lacks.
        progress: show the progress bars of transformers.

    Raises:
        ValueError: files that can't be read, or that hold no decoder-only language model; quantised weights.
        ImportError: an adapter without the `peft` package.
    """
    with nullcontext() if progress else without_bars(*_BARS):
        if source.kind == "gguf":
            return _read_gguf(Path(source.where), dtype)
        model, unused = _read_weights(source.where, dtype, download)
    return Plain(text_part(model), read_tokenizer(source.where, download), unused)


def few(names: Sequence[str]) -> str:
    """The first three names of a list, as text."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_weights(where: str, dtype: torch.dtype, download: bool) -> tuple[Any, tuple[str, ...]]:
    """The whole model, its towers for other things than text included; an adapter is merged into what it is on. And names of
    weights that it has no place for.
    """
    adapter = find_adapter(where, download)
    if adapter is not None:
        base = find_source(adapter.base)
        if base.kind == "gguf":
            raise InputError(f"{where} is an adapter on the GGUF file {base.where}: name a folder in adapter_config.json")
        require_plain(adapter, download)
        model, unused = _read_weights(base.where, dtype, download)
        return merge_adapter(model, adapter), unused
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    call: dict[str, Any] = {"trust_remote_code": False, "local_files_only": not download}
    loading = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}  # refused by name below
    try:
        config = AutoConfig.from_pretrained(where, **call)
        call |= _unpacking(where, config)
        require_readable(where, download)
        kind = _class_for(config)
        loaded = kind.from_pretrained(where, config=config, dtype=dtype, **loading, **call)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:  # files that are missing, cut off or odd
        raise unreadable(where, error) from error
    return _whole(where, *loaded)


def _whole(where: str, hf_model: Any, loading: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The model, if its files have every weight: Hugging Face draws those that they lack at random, and warns in a log."""
    if other := sorted(loading["mismatched_keys"]):
        name, in_files, in_model = other[0]
        raise InputError(
            f"can't load the model in {where}: {len(other)} weights have other shapes than config.json says, the first is "
            f"{name}, {tuple(in_files)} in the files and {tuple(in_model)} by config.json"
        )
    lacking, unused = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if lacking:
        raise InputError(f"the files in {where} lack {len(lacking)} weights of {type(hf_model).__name__}: {few(lacking)}")
    if any("lora_" in name for name in unused):
        raise InputError(
            f"the weights in {where} hold an adapter that isn't merged ({few(unused)}): merge_and_unload() and save"
        )
    return hf_model, tuple(unused)


def _class_for(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{config.model_type} is an encoder with a decoder: only decoder-only language models have one stream")
    if config.get_text_config() is not config and type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{config.model_type!r} is no language model that generates text: transformers has no causal model of it"
        )
    return AutoModelForCausalLM


def _unpacking(where: str, config: Any) -> dict[str, Any]:
    """How quantised weights become plain ones, where Hugging Face can do that without loss."""
    packed = getattr(config, "quantization_config", None)
    if packed is None:
        return {}
    method = str(packed.get("quant_method") if isinstance(packed, dict) else packed.quant_method)
    if method == "mxfp4":
        from transformers import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
    raise Unsupported(
        f"the weights in {where} are quantised ({method}): load_model reads plain ones; take the model's unquantised "
        "checkpoint, or load it with transformers and wrap it with TransformerBridge.boot_transformers(name, hf_model=...)"
    )


def read_tokenizer(where: str, download: bool) -> Any:
    """The tokenizer in a folder or on the hub; of an adapter without one, its base's."""
    from transformers import AutoTokenizer

    adapter = find_adapter(where, download)
    if adapter is not None and not adapter.has_tokenizer:
        return read_tokenizer(find_source(adapter.base).where, download)
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=not download)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the weights in {where} were read, its tokenizer can't be: {error}") from error


def _read_gguf(file: Path, dtype: torch.dtype) -> Plain:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file: it doesn't begin with the bytes 'GGUF'")
    call: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        with parsed_once():
            config = AutoConfig.from_pretrained(file.parent, **call)
            complete(config, header := read_header(file), str(file))
            loaded = AutoModelForCausalLM.from_pretrained(
                file.parent, config=config, dtype=dtype, output_loading_info=True, **call
            )
            require_places(loaded[0], header, str(file))
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **call)
    except (ImportError, InputError):
        raise
    except Exception as error:  # the reader raises whatever a broken file leads it to
        cut = isinstance(error, struct.error) or any(said in str(error) for said in ("mmap length", "cannot reshape"))
        raise InputError(f"{file} can't be read as GGUF{', it seems to be cut off' if cut else ''}: {error}") from error
    model, _ = _whole(str(file), *loaded)
    del model.config.quantization_config  # the weights are plain by now; HookedTransformer refuses the mark
    _add_turn_ends(model.generation_config, turn_end_ids(file))
    return Plain(model, tokenizer)


def _add_turn_ends(generation_config: Any, ends: frozenset[int]) -> None:
    known = generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    generation_config.eos_token_id = sorted({*known, *ends}) or None
