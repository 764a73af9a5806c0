"""Scores of others for one response: DeepConf's confidences, the deep-thinking ratio, the change of states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.resampling import Array
from tl_l2norm.experiments.candidates import Unscorable, named
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.signals import Signals, deep_thinking_ratio

CONFIDENCES = ("confidence", "bottom_confidence", "lowest_confidence", "tail_confidence")
"""Of DeepConf."""
CHANGES = ("net_change", "cumulative_change", "aligned_change")
"""Of the states of a thought, segment by segment."""
STATE_SCORES = ("deep_thinking_ratio", *CHANGES)
"""Of what `read_signals` measures."""
SHORT_THOUGHTS = 0.05
"""Share of responses whose thought may be too short for `CHANGES`."""
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
    """One of `STATE_SCORES`; the less cumulative change the better, as its authors find; NaN of a thought that is too short.

    Raises:
        Unscorable: no divergence was read.
        InputError: states that are NaN.
    """
    if name == "deep_thinking_ratio":
        if signals.divergence is None:
            raise Unscorable(f"{named(completion)} has no divergence: {_READ}, with divergence=True, which is the default")
        return float(deep_thinking_ratio(signals.divergence))
    if signals.mean_state.isnan().any():
        raise InputError(f"the states of {named(completion)} are NaN")
    change: Tensor = getattr(signals, name)
    mean = float(change.double().mean())
    return -mean if name == "cumulative_change" else mean


def without_short(scores: Sequence[Array], segment_tokens: int) -> list[Array]:
    """Changes by prompt, a few that are NaN put below all others: a thought too short to have any is not chosen for it.

    Raises:
        Unscorable: over 5% are.
    """
    short = float(np.isnan(np.concatenate(scores)).mean())
    if short > SHORT_THOUGHTS:
        raise Unscorable(
            f"{short:.0%} of the thoughts (or responses without one) have less than two segments of {segment_tokens} tokens: "
            "take shorter ones, segment_tokens=... of read_signals or evaluate"
        )
    return [np.where(np.isnan(own), -np.inf, own) for own in scores]


def signals_of(completion: Completion) -> Signals:
    """What was read of a response.

    Raises:
        Unscorable: nothing.
    """
    if completion.signals is None:
        raise Unscorable(f"{named(completion)} has no signals: {_READ}")
    return completion.signals
