"""What belongs to the whole process, and stays as it is while an engine is loaded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


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
