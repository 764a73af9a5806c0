"""Scores of others for one response: DeepConf's confidences, the deep-thinking ratio, the change of states."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.resampling import Array
from tl_l2norm.experiments.candidates import Unscorable, named
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.signals import Signals, deep_thinking_ratio

CONFIDENCES = ("confidence", "bottom_confidence", "lowest_confidence", "tail_confidence")
"""Of DeepConf."""
STATE_SCORES = ("deep_thinking_ratio", "net_change", "cumulative_change", "aligned_change")
"""Of what `read_signals` measures."""
WINDOW = 2048
"""Tokens of DeepConf's groups and of its tail."""

_BOTTOM = 0.1  # of the groups
_RECORD = "call generate with record=True, which is the default"
_READ = "call read_signals(model, completions)"


def confidence(completion: Completion, name: str, window: int) -> float:
    """One of `CONFIDENCES`.

    Raises:
        Unscorable: token confidence wasn't recorded.
    """
    if completion.token_confidence is None:
        why = _RECORD if completion.logprobs is None else "it was recorded by a version that didn't keep it, generate it again"
        raise Unscorable(f"{named(completion)} has no token_confidence: {why}")
    tokens = completion.token_confidence.double().numpy()
    if name == "confidence":
        return float(tokens.mean())
    if name == "tail_confidence":
        return float(tokens[-window:].mean())
    groups = np.sort(group_confidences(tokens, window))
    lowest = 1 if name == "lowest_confidence" else max(1, int(_BOTTOM * len(groups)))
    return float(groups[:lowest].mean())


def group_confidences(tokens: Float[np.ndarray, " token"], window: int) -> Float[np.ndarray, " group"]:
    """Means over all windows of this many tokens; of fewer tokens one.

    Examples:
        >>> group_confidences(np.array([1.0, 3.0, 8.0]), 2)
        array([2. , 5.5])
    """
    size = min(window, len(tokens))
    sums = np.concatenate([[0.0], np.cumsum(tokens)])
    means: Array = (sums[size:] - sums[:-size]) / size
    return means


def state_score(completion: Completion, signals: Signals, name: str) -> float:
    """One of `STATE_SCORES`; the less cumulative change the better, as its authors find.

    Raises:
        Unscorable: no divergence was read, or the thought is too short.
    """
    if name == "deep_thinking_ratio":
        if signals.divergence is None:
            raise Unscorable(f"{named(completion)} has no divergence: {_READ}, with divergence=True, which is the default")
        return float(deep_thinking_ratio(signals.divergence))
    change: Tensor = getattr(signals, name)
    mean = float(change.double().mean())
    if np.isnan(mean):
        raise Unscorable(
            f"{named(completion)} thinks for less than two segments of {signals.segment_tokens} tokens: {_READ[:-1]}, "
            "segment_tokens=...) with fewer"
        )
    return -mean if name == "cumulative_change" else mean


def signals_of(completion: Completion) -> Signals:
    """What was read of a response.

    Raises:
        Unscorable: nothing.
    """
    if completion.signals is None:
        raise Unscorable(f"{named(completion)} has no signals: {_READ}")
    return completion.signals
