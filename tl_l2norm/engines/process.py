"""What belongs to the whole process, and stays as it is while an engine is loaded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tl_l2norm.core.errors import Unsupported


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Some variables set inside the context."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Every random generator is after the context what it was before."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def replaced_by_vllm() -> list[tuple[Any, str, Any]]:
    """What its CPU worker puts functions that do nothing in the place of, for the process."""
    places = [(torch, "set_num_threads"), (torch.accelerator, "synchronize"), (torch.accelerator, "empty_cache")]
    return [(owner, name, getattr(owner, name)) for owner, name in places]


def require_own_code(architectures: Sequence[str]) -> None:
    """Refuse a model that vLLM doesn't have, and one that it runs by patching the classes of transformers, a bridge's too."""
    from vllm.model_executor.models.registry import ModelRegistry

    known = [ModelRegistry.models[name] for name in architectures if name in ModelRegistry.models]
    if not known:
        raise Unsupported(f"vLLM doesn't have {' or '.join(architectures) or 'a model without architectures in config.json'}")
    if str(known[0].module_name).endswith(".transformers"):
        raise Unsupported(
            f"vLLM has no code of its own for {architectures[0]}: it would patch that of transformers, for this whole process"
        )
