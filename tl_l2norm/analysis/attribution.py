"""Is a difference between the modes one of thinking, or of length, position, token types or the answer's token?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from tl_l2norm.analysis.deconfounding import effects_on
from tl_l2norm.analysis.pairing import MATCHES, Match, Pair, Tokens, mode_means, pair_modes
from tl_l2norm.analysis.quantities import Latents, values
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import Layers, layer_ranges
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, estimate, interval, prompt_weights
from tl_l2norm.core.schema import MODEL, QUANTITY, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips
from tl_l2norm.core.trace import Trace, TracesLike, traces_of

_WORDS = {
    "none": "all tokens",
    "count": "as many tokens of each, drawn at random from the longer",
    "length": "the first tokens of each, as many as the shorter has",
    "position": "tokens at the same positions",
    "token": "tokens of the same types",
    "answer": "the answer's token alone",
    "length, by regression": "responses of the same length, by regression over prompts",
    "jointly": "thoughts without the answer behind them: tokens of the same types, given the token before, repeats, place, "
    "length and prompt as well, by one regression over tokens",
}
ALPHA = 0.05

_RAW: Match = "none"
_COUNTED: Match = "count"
_BY_REGRESSION, _JOINTLY = "length, by regression", "jointly"
_NOTHING = Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0)

ATTRIBUTIONS = Schema(
    "differences by way of matching",
    "attribute(...).table",
    (
        Column("match", str, "how the modes are matched"),
        Column("compared", str, "the tokens or responses that are compared, in words"),
        Column("difference", float, "thinking minus direct, mean over the layers, in units of the quantity"),
        *ends("difference"),
        N,
        Column("removed", float, "what matching takes away of the difference of the same prompts; NaN for none"),
        *ends("removed", prefix=True),
        Column(
            "p", float, "two-sided, of the difference by count and of what is left jointly given all; NaN for the other ways"
        ),
        Column("layers", str, 'over which the mean is taken, such as "12 to 15"'),
        QUANTITY,
        SEED,
        MODEL,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """A difference between the modes, as it is and when the modes are matched."""

    table: pd.DataFrame
    """One entry per way of matching: match, compared (in words), difference, low, high, n, removed (what matching takes away
    of the difference of the same prompts), removed_low, removed_high, p (of the difference by count, by flipping the signs of
    prompts' differences, and of what is left jointly given all; otherwise NaN), layers, quantity, seed, model."""
    quantity: str
    unmeasured: str = ""
    """Why the joint entry could not be made; empty where it is there."""

    def _by_match(self) -> dict[str, pd.Series]:  # type: ignore[type-arg]
        return {entry["match"]: entry for _, entry in ATTRIBUTIONS.check(self.table).iterrows()}

    def _not_kept(self, *, removed: bool) -> tuple[str, ...]:
        """Ways of matching whose interval doesn't keep the difference's sign, by whether they surely take some of it away."""
        entries = self._by_match()
        near, sign = ("low", 1) if entries[_COUNTED]["difference"] > 0 else ("high", -1)
        return tuple(
            match
            for match, entry in entries.items()
            if match not in (_RAW, _COUNTED)
            and _is_tested(entry)
            and not sign * entry[near] > 0
            and bool(sign * entry[f"removed_{near}"] > 0) == removed
        )

    @property
    def goes_away(self) -> tuple[str, ...]:
        """Ways of matching that take the difference away: it is not there any more, and surely smaller than before."""
        return self._not_kept(removed=True)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Ways of matching that leave too wide an interval: the difference may be there still, or not."""
        return self._not_kept(removed=False)

    @property
    def stays(self) -> bool:
        """Whether the difference is there, no way of matching takes it away or leaves it open, and neither do all together."""
        entries = self._by_match()
        joint, sign = entries[_JOINTLY], np.sign(entries[_COUNTED]["difference"])
        kept = _is_tested(joint) and sign * joint["difference"] > 0 and joint["p"] <= ALPHA
        return bool(self.is_there and kept and not self.goes_away and not self.undecided)

    @property
    def is_there(self) -> bool:
        """Whether there is a difference to begin with, of as many tokens of each response: what `compare_late` says."""
        own = self._by_match()[_COUNTED]
        return bool(own["n"] >= MIN_PROMPTS and (own["low"] > 0 or own["high"] < 0) and own["p"] <= ALPHA)

    @property
    def verdict(self) -> str:
        """In words: what the difference can be put down to."""
        own = self._by_match()[_COUNTED]
        figures = f"{own['difference']:.4g} [{own['low']:.4g}, {own['high']:.4g}], n = {own['n']} prompts, p = {own['p']:.2g}"
        if own["n"] < MIN_PROMPTS:
            return f"With {own['n']} prompts nothing can be said of the modes: give at least {MIN_PROMPTS}."
        if not self.is_there:
            return f"No difference between the modes: {figures}."
        word = "higher" if own["difference"] > 0 else "lower"
        untested = [m for m, entry in self._by_match().items() if not _is_tested(entry) and m != _JOINTLY]
        note = f" Not tested for lack of such tokens: {', '.join(untested)}." if untested else ""
        if self.undecided:
            note = f" Too few prompts to say what is left when matched by {', '.join(self.undecided)}.{note}"
        if self.goes_away:
            return f"Thinking is {word} ({figures}), but not when matched by {', '.join(self.goes_away)}.{note}"
        if self.unmeasured:
            return f"Thinking is {word}: {figures}. Whether all together leave it so can't be told: {self.unmeasured}.{note}"
        if not self.stays:
            return f"Thinking is {word}: {figures}.{note}"
        return f"Thinking is {word}, and stays so however the modes are matched, also jointly given all: {figures}.{note}"


def _is_tested(entry: pd.Series) -> bool:  # type: ignore[type-arg]
    """Enough prompts, and an interval: a regression over lengths that hardly vary has none."""
    return bool(entry["n"] >= MIN_PROMPTS and not np.isnan(entry["low"]))


def attribute(
    think: TracesLike,
    direct: TracesLike,
    *,
    quantity: str = "l2_norm",
    layers: Layers = "late",
    features: Latents | None = None,
    tokens: Tokens = "read",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Attribution:
    """Thinking minus direct, mean over some layers, as it is and matched by length, position, token type and answer token.

    A response's length also acts as a whole (each of its tokens may carry it): "length, by regression" is the difference
    that is left at equal lengths, the intercept of the prompts' differences over the difference of the two lengths.

    Whether there is a difference is asked of as many tokens of each response ("count"), by its interval and by flipping the
    signs of prompts' differences, as `compare_late` does: with rare loud tokens that of all tokens has too narrow an interval.

    What two of these do together no single match takes away, so "jointly" has the effect of mode given token type, the token
    before, repeats, place, length and prompt at once (`mode_effects`, for the mean over the layers); its removed is what that
    leaves out of the whole difference. There, unlike in the other entries, only the thought of a response that thinks between
    tags is compared, not the answer behind it. A difference is only said to stay where it stays there too.

    Args:
        think: thinking traces; the label "prompt" pairs them.
        direct: direct ones.
        quantity: "l2_norm", a recorded metric, "feature_sum" or "reasoning_sum".
        layers: over which the mean is taken; by default the late ones that were recorded.
        features: for "reasoning_sum".
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        seed: of the resampling.
        resamples: how many, and how many flips: 19 or more.

    Raises:
        ValueError: modes with different prompts, fewer than 8, an infinite value, or a quantity that was not recorded.
        Unmeasurable: no prompt has tokens in both modes.

    Examples:
        >>> cause = attribute(think, direct)
        >>> cause.table[["match", "difference", "n"]].round()
                           match  difference   n
        0                   none      -111.0  12
        1                  count      -145.0  12
        2                 length       -29.0  12
        3               position      -130.0  12
        4                  token      -125.0  11
        5                 answer       -22.0  12
        6  length, by regression       -85.0  12
        7                jointly         NaN   0
        >>> cause.goes_away  # nothing by itself
        ()
    """
    think, direct = traces_of(think), traces_of(direct)
    pairs = pair_modes([t.select(layers) for t in think], [t.select(layers) for t in direct])
    read = {id(t): values(t, quantity, features) for members in pairs.values() for pair in members for t in pair}
    differences = {match: _differences(pairs, read, match, tokens, seed) for match in MATCHES}
    if np.isnan(differences[_COUNTED]).all():
        raise Unmeasurable(f"no prompt has response tokens with a {quantity} in both modes: there is nothing to compare")
    left: dict[str, Estimate] = {m: estimate(x, seed=seed, resamples=resamples) for m, x in differences.items()}
    lengths = np.array([np.mean([_length(t) - _length(d) for t, d in members]) for members in pairs.values()])
    removed: dict[str, Estimate] = {
        m: estimate(differences[_RAW] - x, seed=seed, resamples=resamples) for m, x in differences.items() if m != _RAW
    }
    by_length = _at_equal_length(differences[_RAW], lengths, seed, resamples)
    try:
        joint, p, unmeasured = *_jointly(pairs, read, tokens, seed, resamples), ""
    except Unmeasurable as reason:
        joint, p, unmeasured = _NOTHING, np.nan, str(reason)
    p_values = {_COUNTED: float(sign_flips(differences[_COUNTED][:, None], seed=seed, flips=resamples).p[0]), _JOINTLY: p}
    whole = left[_RAW].mean
    beside = Estimate(mean=whole - joint.mean, low=whole - joint.high, high=whole - joint.low, n=joint.n)
    ways = [(match, e, removed.get(match, _NOTHING)) for match, e in left.items()]
    ways += [(_BY_REGRESSION, *by_length), (_JOINTLY, joint, beside)]
    table = ATTRIBUTIONS.frame(
        (
            {"match": match, "compared": _WORDS[match], "difference": e.mean, "low": e.low, "high": e.high, "n": e.n}
            | {"removed": r.mean, "removed_low": r.low, "removed_high": r.high, "p": p_values.get(match, np.nan)}
            for match, e, r in ways
        ),
        layers=layer_ranges(think[0].select(layers).layers),
        quantity=quantity,
        seed=seed,
        model=think[0].provenance.model,
    )
    return Attribution(table=table, quantity=quantity, unmeasured=unmeasured)


def _jointly(
    pairs: dict[str, list[Pair]], read: dict[int, Tensor], tokens: Tokens, seed: int, flips: int
) -> tuple[Estimate, float]:
    """Effect of mode on the mean over layers, given all, and its p."""
    (effect,) = effects_on(pairs, lambda trace: read[id(trace)].nanmean(0, keepdim=True), tokens=tokens, seed=seed, flips=flips)
    low, high = effect["low"], effect["high"]
    return Estimate(mean=effect["effect"], low=low, high=high, n=int(effect["n"])), effect["p"]


def _differences(pairs: dict[str, list[Pair]], read: dict[int, Tensor], match: Match, tokens: Tokens, seed: int) -> Array:
    first, second = mode_means(pairs, lambda trace: read[id(trace)], match=match, tokens=tokens, seed=seed)
    by_layer = first - second
    held = ~np.isnan(by_layer).all(1)
    differences = np.full(len(by_layer), np.nan)
    differences[held] = np.nanmean(by_layer[held], axis=1)
    return differences


def _length(trace: Trace) -> int:
    return len(trace) - trace.prompt_len


def _at_equal_length(differences: Array, lengths: Array, seed: int, resamples: int) -> tuple[Estimate, Estimate]:
    """Intercept of differences over differences of length, and what of the mean is not in it; NaN where all lengths differ by
    the same.
    """
    held = ~np.isnan(differences)
    x, y = lengths[held], differences[held]
    if len(y) < 3 or np.ptp(x) == 0:
        return _NOTHING, _NOTHING
    weights = np.vstack([np.full(len(y), 1.0), prompt_weights(len(y), seed=seed, resamples=resamples)])
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    variance = weights @ x**2 / total - mean_x**2
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(variance > 1e-12, (weights @ (x * y) / total - mean_x * mean_y) / variance, np.nan)
    parts = mean_y - slope * mean_x, slope * mean_x
    left, removed = (interval(float(part[0]), part[1:], len(y)) for part in parts)
    return left, removed
