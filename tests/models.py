"""The models that laws are held on: half of SmolLM2, from its wheel, and tiny random ones of other architectures."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock
from transformer_lens.hook_points import HookPoint
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_l2norm as l2
from tl_l2norm.models.sources import bundled_file

try:
    from transformer_lens import HookedTransformer  # noqa: F401

    HAS_HOOKED = True
except ImportError:
    HAS_HOOKED = False


SCRATCH = "TL_L2NORM_TEST_MODELS"
"""Environment variable with the folder of this run's models."""
DEVICE = os.environ.get("TL_L2NORM_TEST_DEVICE", "cpu")
"""Where the shared models run: "cuda" tries the laws on a GPU."""


class Case(NamedTuple):
    architecture: str
    backend: str

    def __str__(self) -> str:
        return f"{self.architecture}-{self.backend}"


HALF = "smollm2_half"
"""Its first 14 blocks of 30, with sinks of norm 25,000 from block 11 on: laws need no more, and take half the time."""
_BLOCKS_OF_HALF = 14

HOOKED = (HALF, "llama", "qwen3", "gpt2") if HAS_HOOKED else ()
BRIDGE = (HALF, "llama", "qwen3", "gpt2", "gemma3", "mistral")
CASES = [*(Case(name, "bridge") for name in BRIDGE), *(Case(name, "hooked") for name in HOOKED)]
QUICK = {Case("llama", "bridge"), Case("gemma3", "bridge"), Case("gpt2", "hooked")}
"""On which laws are held at every change: each backend, both kinds of norm and of positions, windows. The others are slow."""
TINY = [case for case in CASES if case.architecture != HALF]
SMOLLM2 = [case for case in CASES if case.architecture == HALF]

VOCABULARY = 4096
"""Of the tiny models; their tokenizer is SmolLM2's without its rarer tokens. Most of what they cost is their vocabulary: that
of all 49,152 tokens is `HALF`'s."""

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.15,  # wide enough for greedy decoding not to sit on ties
}


def _config(architecture: str) -> Any:
    match architecture:
        case "llama":
            return transformers.LlamaConfig(**_SMALL)
        case "qwen3":
            return transformers.Qwen3Config(**_SMALL, head_dim=16, tie_word_embeddings=True)
        case "mistral":  # sequences of the tests run past this window
            return transformers.MistralConfig(**_SMALL, sliding_window=12)
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **_SMALL,
                head_dim=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"] * 3,
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=48,
                n_layer=6,
                n_head=4,
                n_positions=256,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.15,
            )
    raise ValueError(architecture)


@functools.cache
def tokenizer(architecture: str = "tokenizer") -> Any:
    """That of the tiny models (SmolLM2's own first tokens, under its own numbers), or that of a model."""
    return AutoTokenizer.from_pretrained(folder(architecture))


@functools.cache
def folder(architecture: str) -> str:
    """A Hugging Face folder with the model, its weights in float32 safetensors, and its tokenizer; made once for all processes
    of a test run."""
    place = Path(os.environ[SCRATCH], architecture)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            half = f"{place}.half"
            _save(architecture, half)
            os.rename(half, place)
    return str(place)


def _save(architecture: str, place: str) -> None:
    gguf = bundled_file("smollm2")
    if architecture == "tokenizer":
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(place)
        _keep(VOCABULARY, Path(place, "tokenizer.json"))
        return
    if architecture == "smollm2":
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        del loaded.config.quantization_config
        model = AutoModelForCausalLM.from_config(loaded.config)  # the loaded one refuses to be saved
        model.load_state_dict(loaded.state_dict())
        its_tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    elif architecture == HALF:
        model = AutoModelForCausalLM.from_pretrained(folder("smollm2"), num_hidden_layers=_BLOCKS_OF_HALF)
        its_tokenizer = tokenizer("smollm2")
    else:
        torch.manual_seed(4)  # under which norms of short runs neither tie nor repeat
        model = AutoModelForCausalLM.from_config(_config(architecture))
        its_tokenizer = tokenizer()
    model.save_pretrained(place)
    its_tokenizer.save_pretrained(place)


def _keep(n: int, file: Path) -> None:
    """Leave the first `n` tokens, which merges of byte pairs make of each other, and the merges that make them."""
    state = json.loads(file.read_text())
    parts = state["model"]
    parts["vocab"] = {token: number for token, number in parts["vocab"].items() if number < n}
    parts["merges"] = [pair for pair in parts["merges"] if "".join(pair) in parts["vocab"]]
    file.write_text(json.dumps(state, ensure_ascii=False))


@functools.cache
def hugging_face(architecture: str) -> Any:
    """The plain model, never touched by TransformerLens."""
    return AutoModelForCausalLM.from_pretrained(folder(architecture), dtype=torch.float32, attn_implementation="eager").eval()


@functools.cache
def lens(case: Case) -> Any:
    """The same weights as a TransformerLens model, loaded once for all tests: they must leave it as it was."""
    return l2.load_model(folder(case.architecture), backend=case.backend, device=DEVICE)  # type: ignore[arg-type]


def hooks_left() -> int:
    """Hooks on the hook points of all models that tests have used so far."""
    return sum(len(point._forward_hooks) + len(point._backward_hooks) for case in _used for point in _points(case))


@functools.cache
def _points(case: Case) -> list[HookPoint]:
    return [module for module in lens(case).modules() if isinstance(module, HookPoint)]


_used: set[Case] = set()


def use(case: Case) -> Any:
    _used.add(case)
    return lens(case)
