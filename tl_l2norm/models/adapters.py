"""PEFT adapters: found beside a model's files, and merged into the weights that they are on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from tl_l2norm.core.errors import InputError, MissingPackage, Unsupported

_CONFIG = "adapter_config.json"


class Adapter(NamedTuple):
    """An adapter's files."""

    where: str
    base: str
    """What it is on: a folder or hub id."""
    has_tokenizer: bool


def find_adapter(where: str, download: bool) -> Adapter | None:
    """The adapter that a folder or hub id holds instead of a model.

    Raises:
        ValueError: it holds a model too, or the adapter doesn't say what it is on.
    """
    try:
        config = find_file(where, _CONFIG, download)
    except OSError:  # no such model at all, which reading its configuration says better
        return None
    if config is None:
        return None
    if find_file(where, "config.json", download) is not None:
        raise InputError(
            f"{where} holds a model and an adapter ({_CONFIG}): which is meant isn't known, as merged weights may lie beside "
            f"their adapter. Load a folder without {_CONFIG} for the weights alone, or one with the adapter's files alone"
        )
    base = json.loads(Path(config).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{config} doesn't say what the adapter is on: set base_model_name_or_path in it")
    return Adapter(where, str(base), find_file(where, "tokenizer_config.json", download) is not None)


def find_file(where: str, file: str, download: bool) -> str | None:
    """Path of a file in a folder or hub repository; None where it has none."""
    from transformers.utils import cached_file

    return cached_file(  # type: ignore[no-any-return]
        where,
        file,
        local_files_only=not download,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def require_plain(adapter: Adapter, download: bool) -> None:
    """Refuse weights that are pickled, which `peft` would load.

    Raises:
        ValueError: no safetensors.
    """
    name = "adapter_model.safetensors"
    if find_file(adapter.where, name, download) is None:
        raise InputError(f"{adapter.where} has no {name}: pickled weights (.bin) may run code; save the adapter as safetensors")


def merge_adapter(hf_model: Any, adapter: Adapter) -> Any:
    """The model with the adapter's weights added to its own; the model given is used up.

    Raises:
        ImportError: without `peft`.
        ValueError: an adapter of another model, or of a kind that can't be merged.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingPackage(
            f"{adapter.where} is an adapter (PEFT) on {adapter.base!r}: pip install peft, and it is merged as it is loaded; or "
            "merge it elsewhere (model.merge_and_unload().save_pretrained(folder)) and load that folder"
        ) from error
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            wrapped = PeftModel.from_pretrained(hf_model, adapter.where)
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"the adapter in {adapter.where} doesn't fit its base {adapter.base!r}: {error}") from error
    lost = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
    if lost:
        raise InputError(f"the adapter in {adapter.where} doesn't fit its base {adapter.base!r}: {lost[0][:300]}")
    if any(config.is_prompt_learning for config in wrapped.peft_config.values()):
        kind = wrapped.peft_config["default"].peft_type.value
        raise Unsupported(f"the adapter in {adapter.where} ({kind}) adds tokens, not weights: it can't be merged into a model")
    return wrapped.merge_and_unload(safe_merge=True)
