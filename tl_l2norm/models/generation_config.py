"""What a model's generation_config.json says: refused where it can't be read, and named where it isn't followed."""

from __future__ import annotations

import json
import warnings
import weakref
from pathlib import Path
from typing import Any

from tl_l2norm.core.errors import InputError
from tl_l2norm.models.adapters import find_file

_FILE = "generation_config.json"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": (),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "dola_layers": (),
}
"""Settings that change which tokens are generated, with the values at which they don't. (How tokens are drawn, `generate` asks
for itself.)"""

_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def require_readable(where: str, download: bool) -> None:
    """Refuse a file that transformers would pass over, or stumble over later: with it goes what ends a turn.

    Raises:
        ValueError: with the file and what is wrong in it.
    """
    file = find_file(where, _FILE, download)
    if file is None:
        return
    try:
        said = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no JSON ({error}): mend it, or remove it") from error
    if not isinstance(said, dict):
        raise InputError(f"{file} holds a {type(said).__name__}, not settings by name: mend it, or remove it")
    ends = said.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if wrong := [end for end in listed if isinstance(end, bool) or not isinstance(end, int)]:
        raise InputError(f"eos_token_id in {file} has {wrong[0]!r}, which is no token id")


def warn_of_ignored(model: Any, generation_config: Any) -> None:
    """Name the settings that Hugging Face's generate would follow and ours doesn't. Once for each model."""
    if model in _warned:
        return
    said = {name: getattr(generation_config, name, None) for name in _NEUTRAL}
    ignored = {name: value for name, value in said.items() if value and value not in _NEUTRAL[name]}
    if ignored:
        _warned.add(model)
        warnings.warn(
            f"the model's generation config asks for {', '.join(f'{name}={value!r:.60}' for name, value in ignored.items())}, "
            "which isn't followed here: responses are those of the model alone, not those that transformers' generate gives",
            stacklevel=4,
        )
