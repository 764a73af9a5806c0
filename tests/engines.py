"""Engines for tests: one at a time, kept as long as the next test wants the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

import tl_l2norm as l2
from tl_l2norm.engines.vllm_versions import PACKAGES

CACHE = {"kv_cache_memory_bytes": 1 << 27}
"""On a CPU vLLM takes most of the memory where nobody says how much."""

SMALL: dict[str, Any] = {
    **{"vocab_size": 270, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15},
    **{"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256},
}
"""With tiny-reasoner's vocabulary, and heads of a size that vLLM's attention takes."""


def has_vllm() -> bool:
    for package in PACKAGES:
        try:
            return bool(version(package))
        except PackageNotFoundError:
            continue
    return False


class Engines:
    """`engines(source, **options)`: an engine, loaded anew where the last was another."""

    def __init__(self) -> None:
        self.key: Any = None
        self.engine: Any = None

    def __call__(self, source: Any = "tiny-reasoner", **options: Any) -> Any:
        key = (str(source), sorted((name, str(value)) for name, value in options.items()))
        if key != self.key or self.engine._lost:
            self.close()
            self.key, self.engine = key, l2.load_engine(source, **{**CACHE, **options})
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.key = self.engine = None


def running() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


def reasoner() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


QUESTIONS = [f"mod 10: {i}A-{j}" for i, j in ((7, 3), (2, 9), (4, 4), (8, 1))]


def unequal_prompts(model: Any) -> list[Any]:
    """The last with a long text before its question."""
    texts = [*QUESTIONS[:3], "7 times 8 is 56; " * 3 + QUESTIONS[3]]
    return [l2.chat_prompt(model.tokenizer, text, mode="think") for text in texts]


def save_random(kind: str, place: Path, **options: Any) -> Path:
    """A folder of a random model of a class of configurations, with gains and biases of their own."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SMALL | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(place)
    assets = Path(__file__).parents[1] / "assets" / "tiny_reasoner"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(assets / name, place / name)
    return place


def edit(place: Path, **entries: Any) -> Path:
    """Change entries of a folder's config.json."""
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return place
