"""Whether thinking norms are above direct ones in the late layers: over all of them, by layer, and without the last block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd

from tl_l2norm.analysis.curves import P_VALUES
from tl_l2norm.analysis.pairing import Match, Pair, Tokens, by_own_prompt, mode_means, require_modes, require_same_prompts
from tl_l2norm.analysis.rise import amplification
from tl_l2norm.core.arguments import check_choice
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, Estimate, bootstrap, estimate
from tl_l2norm.core.schema import MODEL, SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

Over = Literal["prompts", "families"]
"""What is resampled: prompts, of the families at hand, or families, each the mean of its prompts: then a statement is one on
families like these, not on these alone."""

_ALPHA = 0.05

_COUNTED = {"none": "all tokens", "count": "as many tokens of each response", "length": "as many first tokens of each response"}
_COUNTED |= {"position": "tokens at the same positions", "token": "tokens of the same types", "answer": "the answer's token"}

LATE_DIFFERENCES = Schema(
    "late differences",
    "compare_late(...).table",
    (
        Column("layer", object, f'a number, "{LATE}" or "{BUT_LAST}", which the unembedding alone reads'),
        Column("think", float, "mean norm of thinking tokens"),
        Column("direct", float, "mean norm of direct tokens"),
        Column("difference", float, "the first minus the second"),
        *ends("difference"),
        Column("ratio", float, "the first over the second"),
        *ends("ratio", prefix=True),
        *P_VALUES,
        N,
        SEED,
        MODEL,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LateComparison:
    """Thinking minus direct, mean norm over the late layers' response tokens, paired by prompt."""

    difference: Estimate
    ratio: Estimate
    """The amplification: the ratio of the two means."""
    table: pd.DataFrame = field(repr=False)
    """One entry per late layer, then for all of them and for all but the last block: layer, think, direct, difference, low,
    high, ratio, ratio_low, ratio_high, p (two-sided, by flipping the signs of prompts' differences: exact where modes are
    exchangeable), p_max (over all entries together), n, seed, model."""
    layers: tuple[int, ...]
    match: Match
    tokens: Tokens
    over: Over
    seed: int
    model: str

    @property
    def verdict(self) -> str:
        """In words, whichever way it falls: higher or lower where the interval leaves out 0 and p is at most 0.05.

        With few prompts and rare loud tokens the interval alone says so in up to 10% of cases where modes are alike.
        """
        difference, p = self.difference, self._p(LATE)
        where = f"{_layers(self.layers)}, {_COUNTED[self.match]}"
        if self.tokens == "chosen":
            where += ", at the tokens from which the response was chosen"
        units = self.over if difference.n != 1 else {"prompts": "prompt", "families": "family"}[self.over]
        if difference.n < MIN_PROMPTS:
            few = f"With {difference.n} {units} nothing can be said of the late layers ({where})"
            figures = f"difference {difference.mean:.4g}, ratio {self.ratio.mean:.3f}, no interval with so few"
            return f"{few}: {figures}; give at least {MIN_PROMPTS}."
        ratio = f"{self.ratio.mean:.3f} [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        figures = f"difference {difference} {units}, ratio {ratio}, p = {p:.2g}"
        return f"Thinking norms are {_word(difference, p)} than direct ones in the late layers ({where}): {figures}{self._but}."

    @property
    def _but(self) -> str:
        """What holds without the last block, where it is of the other sign."""
        inner = self.table[self.table["layer"] == BUT_LAST]
        if inner.empty:
            return ""
        entry = inner.iloc[0]
        own = Estimate(mean=float(entry["difference"]), low=float(entry["low"]), high=float(entry["high"]), n=int(entry["n"]))
        word, p = _word(own, self._p(BUT_LAST)), self._p(BUT_LAST)
        if own.mean * self.difference.mean >= 0 or word == _word(self.difference, self._p(LATE)):
            return ""
        return f"; without the last block ({_layers(self.layers[:-1])}) they are {word}, difference {own}, p = {p:.2g}"

    def _p(self, layer: object) -> float:
        return float(self.table.loc[self.table["layer"] == layer, "p"].iloc[0])


def _word(difference: Estimate, p: float) -> str:
    if not difference.excludes_zero or p > _ALPHA:
        return "neither higher nor lower"
    return "higher" if difference.mean > 0 else "lower"


def _layers(layers: Sequence[int]) -> str:
    return f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"


def compare_late(
    think: TracesLike,
    direct: TracesLike,
    *,
    match: Match = "count",
    tokens: Tokens = "read",
    over: Over = "prompts",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> LateComparison:
    """Compare the modes over the late layers, as far as they were recorded, paired by the label "prompt".

    Without that label the n-th trace of either mode answers the same, and those with the same prompt tokens are its samples.

    As many tokens of both responses are compared by default: the mean of many thinking tokens and that of one direct token
    have unlike distributions even where their tokens are alike, and with 5% of loud tokens 8 prompts said "higher" in half of
    such cases. A prompt without a response token in either mode is left out; `difference.n` says how many are left.

    Args:
        think: thinking traces.
        direct: direct ones, to the same prompts.
        match: which tokens of the two modes are compared, as in `find_reasoning_features`; "none" for all.
        tokens: "read", the response's own, or "chosen", those from which they were chosen.
        over: what is resampled: "prompts", of these families, or "families" (the label "family").
        seed: of the resampling, of match="count" and of the flips.
        resamples: how many, and how many flips: 19 or more.

    Raises:
        ValueError: traces that are not comparable or say that they are of the other mode, modes whose prompts differ, one
            prompt under two labels, no late layer recorded, an infinite norm, no label "family" to resample, or no prompt with
            response tokens in both modes.

    Examples:
        >>> late = compare_late(think, direct)
        >>> late.verdict
        'Thinking norms are lower than direct ones in the late layers (layers 9 to 11, as many tokens of each response): ...'
        >>> late.table[["layer", "difference", "ratio", "n"]].round(1)
                       layer  difference  ratio   n
        0                  9      -112.5    0.7  12
        1                 10      -170.3    0.6  12
        2                 11      -151.0    0.6  12
        3               late      -144.6    0.6  12
        4  late but the last      -141.4    0.6  12
    """
    check_choice("over", over, get_args(Over))
    think, direct = traces_of(think), traces_of(direct)
    require_comparable([*think, *direct])
    require_modes(think, direct)
    think, direct = ([trace.select("late") for trace in traces] for traces in (think, direct))
    pairs = _pairs(think, direct)
    sides = mode_means(pairs, lambda trace: trace.l2_norms, match=match, tokens=tokens, seed=seed)
    both = np.stack(sides, axis=1)  # [prompt, mode, layer]
    if over == "families":
        both = _by_family(both, [members[0][0] for members in pairs.values()])
    first = think[0]
    names, parts = zip(*_parts(both, first.layers, first.provenance.n_layers), strict=True)
    late = parts[names.index(LATE)]
    late = late[~np.isnan(late).any(1)]
    if not len(late):
        raise Unmeasurable("no prompt has response tokens in both modes: collect over prompts with responses, or use generate")
    difference = estimate(late[:, 0] - late[:, 1], seed=seed, resamples=resamples)
    p = sign_flips(np.stack([part[:, 0] - part[:, 1] for part in parts], axis=1), seed=seed, flips=resamples)
    entries = [
        {"layer": name, **_entry(part, seed, resamples), "p": p.p[i], "p_max": p.p_max[i]}
        for i, (name, part) in enumerate(zip(names, parts, strict=True))
    ]
    return LateComparison(
        difference=difference,
        ratio=bootstrap(late[..., None], amplification, seed=seed, resamples=resamples),
        table=LATE_DIFFERENCES.frame(entries, seed=seed, model=first.provenance.model),
        layers=first.layers,
        match=match,
        tokens=tokens,
        over=over,
        seed=seed,
        model=first.provenance.model,
    )


def _pairs(think: Sequence[Trace], direct: Sequence[Trace]) -> dict[str, list[Pair]]:
    """As `pair_modes`, of any number of prompts; without the label "prompt" that of the same tokens is the same."""
    groups = [by_own_prompt(traces) for traces in (think, direct)]
    require_same_prompts(*groups)
    return {prompt: [(t, d) for t in traces for d in groups[1][prompt]] for prompt, traces in groups[0].items()}


def _by_family(both: Array, firsts: Sequence[Trace]) -> Array:
    """Means [family, mode, layer] over the prompts of each family."""
    if any("family" not in trace.labels for trace in firsts):
        raise InputError('over="families" needs the label "family": trace.with_labels(family=...), as run_modes gives it')
    families = np.array([str(trace.labels["family"]) for trace in firsts])
    held = ~np.isnan(both).any((1, 2))
    return np.stack([both[held & (families == f)].mean(0) for f in sorted(set(families[held]))] or [both[0]])


def _parts(both: Array, layers: Sequence[int], n_layers: int) -> Iterator[tuple[object, Array]]:
    """Means [prompt, mode] at each layer and over several, by name."""
    for i, layer in enumerate(layers):
        yield layer, both[..., i]
    for name, rows in late_groups(layers, n_layers).items():
        yield name, both[..., rows].mean(-1)


def _entry(part: Array, seed: int, resamples: int) -> Mapping[str, float]:
    """Of the means [prompt, mode] of one layer, or of several."""
    held = part[~np.isnan(part).any(1)]
    if not len(held):
        names = ("think", "direct", "difference", "low", "high", "ratio", "ratio_low", "ratio_high")
        return {**dict.fromkeys(names, np.nan), "n": 0}
    difference = estimate(held[:, 0] - held[:, 1], seed=seed, resamples=resamples)
    ratio = bootstrap(held[..., None], amplification, seed=seed, resamples=resamples)
    return {
        **dict(zip(("think", "direct"), held.mean(0).tolist(), strict=True)),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "ratio": ratio.mean,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "n": len(held),
    }
