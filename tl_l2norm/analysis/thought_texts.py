"""Late norms of thoughts beside those of other text of the same length, and of levels at the same length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tl_l2norm.analysis.covariates import ranks_within
from tl_l2norm.analysis.labels import label, number, place, truth
from tl_l2norm.analysis.pairing import by_prompt, require_mode, require_numbers, require_prompts, weighted_mean
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import BUT_LAST, LATE, late_groups
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, bootstrap_mean, interval, permuted_within, prompt_weights
from tl_l2norm.core.schema import MODEL, SEED, Column, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of

Columns = list[tuple[str, object]]
"""Scope (a segment, or "response") and layer of each column of figures."""


_WHERE = Column("layer", object, f'a number, "{LATE}" or "{BUT_LAST}"')

THOUGHT_TEXTS = Schema(
    "texts in place of thoughts",
    "thought_text_table",
    (
        Column("text", str, '"filler", "shuffled" or "another\'s"'),
        Column("scope", str, '"thought", "answer" or "response"'),
        Column("layer", object, f'{_WHERE.meaning}; of "response" "log p" or "says answer"'),
        Column("own", float, "mean over problems with the own thought"),
        Column("replaced", float, "with the other text"),
        Column("difference", float, "the former less the latter"),
        *ends("difference"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over the layers of that text and scope"),
        Column("p_families", float, "the greatest when any one family is left out"),
        Column("n", int, "problems that have both texts, those of one family that share a thought counted as one"),
        SEED,
        MODEL,
    ),
)

LEVELS_AT_LENGTH = Schema(
    "levels at equal length",
    "difficulty_at_length",
    (
        _WHERE,
        Column("rho", float, "of level and norm within strata of a family and a length"),
        *ends("rho"),
        Column("p", float, "two-sided"),
        Column("p_max", float, "over all layers"),
        Column("n", int, "problems in strata of several levels"),
        Column("strata", int, "how many of them"),
        Column("n_all", int, "problems"),
        SEED,
        MODEL,
    ),
)


def thought_text_table(traces: TracesLike, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Norms of a thought, and of the answer behind it, less those with other text of the same length in its place.

    Differences are paired by problem, at the very same positions, so neither length nor position nor prompt can make them; of
    "shuffled" not the types of tokens either. p by flipping the sign of each problem's difference. Problems of one family that
    share a thought, token by token, count as one, by their mean: else one that most write would be compared again and again,
    and always with the few others. Thoughts that are nearly the same are not known for it. What one family alone makes is no
    finding of thoughts: p_families is the greatest p when any one family is left out.

    A difference over 0 against "filler" and "shuffled" alone says that ordinary text is louder; against "another's" too, that
    reasoning about this problem is. One of about 0 against "another's" says that norms don't tell whose reasoning it is. How
    right the answers are is beside it: where the model answers as well after filler, the thought wasn't needed.

    Args:
        traces: of `replaced_thoughts`; families by the label family, one for all where there is none.
        seed: of flips and resampling.
        resamples: how many.

    Returns:
        One row per kind of text, scope and layer: text, scope ("thought", "answer": mean norms over its tokens, sinks left out;
        "response"), layer (a number, "late", "late but the last" without the model's last block; of "response" "log p",
        log-probability of the answer in nats, and "says answer", whether it is the likeliest), own, replaced (means over
        problems), difference (own less replaced), low, high, p, p_max (norms: over the layers of that text and scope; else p),
        p_families (the greatest p without any one family, 1 where the difference then changes its sign; p itself of one
        family, NaN where fewer than 8 problems are left), n (problems that have both texts, those that share a thought as one;
        of fewer than 8 there are neither intervals nor p), seed, model.

    Raises:
        ValueError: traces that don't say which text they are of, one prompt under two labels, or fewer than 8 problems of
            every text.

    Examples:
        >>> traces = l2.experiments.replaced_thoughts(model, results, kinds="filler", progress=False)
        >>> table = l2.analysis.thought_text_table(traces).set_index(["scope", "layer"])
        >>> bool(table.loc[("thought", "late"), "own"] > table.loc[("thought", "late"), "replaced"])
        True
    """
    traces = traces_of(traces)
    require_comparable(traces)
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(str(label(trace, "text")), []).append(trace)
    if "own" not in groups or len(groups) < 2:
        raise InputError("there is no 'own' thought, or nothing beside it: give what replaced_thoughts(...) returns")
    columns = _columns(traces[0])
    pairs = {text: _paired(groups["own"], others, columns) for text, others in groups.items() if text != "own"}
    require_prompts(max(len(own) for own, _ in pairs.values()), what="problems with thoughts of their own")
    families = {prompt: str(own[0].labels.get("family", "")) for prompt, own in by_prompt(groups["own"]).items()}
    frames = [_compared(*pair, columns, families, seed, resamples).assign(text=text) for text, pair in pairs.items()]
    return THOUGHT_TEXTS.frame(pd.concat(frames, ignore_index=True), seed=seed, model=traces[0].provenance.model)


def _columns(trace: Trace) -> Columns:
    layers: list[object] = [*trace.layers, *_late(trace)]
    return [*(("thought", one) for one in layers), *(("answer", one) for one in layers), *_SAID]


_SAID: Columns = [("response", "log p"), ("response", "says answer")]


def _late(trace: Trace) -> dict[str, list[int]]:
    return late_groups(trace.layers, trace.provenance.n_layers)


def _paired(own: Sequence[Trace], others: Sequence[Trace], columns: Columns) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of either text a row per problem that has both, the mean over the same samples, and a column per figure.

    Problems that share a thought are one, under the name of the first.
    """
    sides = []
    for traces, rivals in ((own, others), (others, own)):
        held = {_response(trace) for trace in rivals}
        means = by_prompt([trace for trace in traces if _response(trace) in held])
        figures = {prompt: np.mean([_figures(t, len(columns)) for t in samples], axis=0) for prompt, samples in means.items()}
        sides.append(pd.DataFrame.from_dict(figures, orient="index", columns=range(len(columns))))
    units = _units(own)
    first, second = (side.loc[sides[0].index].groupby(units, sort=False).mean() for side in sides)
    return first, second


def _units(own: Sequence[Trace]) -> dict[str, str]:
    """By problem the first of those of its family that it shares thoughts with, be it by way of others."""
    edges = []
    for prompt, samples in by_prompt(own).items():
        for trace in samples:
            first, stop = (place(trace, name) for name in ("thought_from", "thought_to"))
            edges.append((prompt, (str(trace.labels.get("family", "")), *trace.tokens[first:stop].tolist())))
    prompts, texts = ({name: i for i, name in enumerate(dict.fromkeys(ends))} for ends in zip(*edges, strict=True))
    at = [prompts[prompt] for prompt, _ in edges], [len(prompts) + texts[text] for _, text in edges]
    size = len(prompts) + len(texts)
    unit = connected_components(csr_array((np.ones(len(edges)), at), shape=(size, size)), directed=False)[1]
    names = dict(reversed([(unit[i], prompt) for prompt, i in prompts.items()]))
    return {prompt: names[unit[i]] for prompt, i in prompts.items()}


def _response(trace: Trace) -> tuple[object, object]:
    return trace.labels.get("prompt"), trace.labels.get("response")


def _figures(trace: Trace, n: int) -> Array:
    at = torch.arange(len(trace))
    first, stop, answer = (place(trace, name) for name in ("thought_from", "thought_to", "answer_at"))
    parts = []
    for held in ((at >= first) & (at < stop), at >= answer):
        by_layer = weighted_mean(trace, trace.l2_norms.double(), held.double()).numpy()
        parts += [by_layer, [by_layer[rows].mean() for rows in _late(trace).values()]]
    said = [number(trace, "answer_logprob"), float(truth(trace, "says_answer"))]
    figures = np.concatenate([*parts, said])
    assert len(figures) == n
    return figures


def _compared(
    own: pd.DataFrame, other: pd.DataFrame, columns: Columns, families: Mapping[str, str], seed: int, resamples: int
) -> pd.DataFrame:
    difference = (own - other).to_numpy()
    frame = pd.DataFrame(columns, columns=["scope", "layer"]).assign(
        own=own.mean(), replaced=other.mean(), difference=(own - other).mean(), n=(own - other).count()
    )
    frame[["low", "high", "p", "p_max", "p_families"]] = np.nan
    if len(difference) < MIN_PROMPTS:
        return frame
    _, frame["low"], frame["high"] = bootstrap_mean(difference, seed=seed, resamples=resamples)
    for _, at in frame.groupby("scope", sort=False).groups.items():
        found = sign_flips(difference[:, at], seed=seed, flips=resamples)
        alone = frame.loc[at, "scope"].eq("response").to_numpy()
        frame.loc[at, "p"] = found.p
        frame.loc[at, "p_max"] = np.where(alone, found.p, found.p_max)
    groups = np.unique([families[prompt] for prompt in own.index], return_inverse=True)[1]
    frame["p_families"] = frame["p"] if groups.max() == 0 else _p_families(difference, groups, seed, resamples)
    return frame


def _p_families(difference: Array, families: NDArray[np.intp], seed: int, flips: int) -> Array:
    """[column] The greatest p when any one family is left out of the problems; 1 where the difference changes its sign."""
    sign, greatest = np.sign(np.nansum(difference, axis=0)), np.zeros(difference.shape[1])
    for left_out in range(families.max() + 1):
        rest = difference[families != left_out]
        p = np.where(np.sign(np.nansum(rest, axis=0)) == sign, sign_flips(rest, seed=seed, flips=flips).p, 1.0)
        # NaN stays: without this family nothing can be said
        greatest = np.maximum(greatest, np.where((~np.isnan(rest)).sum(0) < MIN_PROMPTS, np.nan, p))
    return greatest


def difficulty_at_length(traces: TracesLike, *, width: int = 1, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Does the late norm of a response grow with the level of its problem, among responses of the same length?

    Spearman's rho within strata of one family and one length: ranks of level and of mean norm are centred in each, and the
    test permutes levels within them alone, so that neither family nor length can make a trend. Harder problems are thought
    about longer, so what most of a trend over all lengths rests on isn't seen here: only whether norms tell levels apart that
    length doesn't. Where length follows from the level, that can't be tested, and is said.

    Args:
        traces: thinking ones, one per problem, with the labels prompt, level and family.
        width: tokens of length that count as the same; over 1, length can still act by so much.
        seed: of permutations and resampling.
        resamples: how many.

    Returns:
        One row per layer, then "late" and "late but the last" (without the model's last block): layer, rho, low, high, p
        (two-sided), p_max (over layers), n (problems in strata of several levels), strata, n_all (problems), seed, model.

    Raises:
        ValueError: direct responses, labels that are missing or no numbers, several responses to one problem, one prompt under
            two labels, or a norm that is NaN.
        Unmeasurable: fewer than 8 problems whose stratum has several levels.

    Examples:
        >>> trend = l2.analysis.difficulty_at_length(think, width=100, resamples=200)  # so wide that length can act
        >>> trend.set_index("layer").loc["late", ["strata", "n_all"]].tolist()
        [..., 12]
    """
    traces, width = traces_of(traces), as_integer("width", width, least=1)
    require_comparable(traces)
    require_mode(traces, "think", "levels at equal length", "give the thinking ones")
    if len(by_prompt(traces)) < len(traces):
        raise InputError("several responses to one problem: give one of each, for the level is the problem's")
    require_numbers(traces)
    late, n_all = _late(traces[0]), len(traces)
    norms = np.stack([weighted_mean(t, t.l2_norms.double(), t.is_response.double()).numpy() for t in traces])
    held = ~np.isnan(norms).any(1)  # a response without tokens that count has no norm
    usable, norms = [trace for trace, own in zip(traces, held, strict=True) if own], norms[held]
    levels = np.array([number(trace, "level") for trace in usable])
    lengths = [(len(trace) - trace.prompt_len) // width for trace in usable]
    strata = np.unique(
        [f"{trace.labels.get('family', '')}/{n}" for trace, n in zip(usable, lengths, strict=True)], return_inverse=True
    )[1]
    kept = np.array([len(set(levels[strata == own])) > 1 for own in strata])
    if kept.sum() < MIN_PROMPTS:
        raise Unmeasurable(
            f"{int(kept.sum())} of {n_all} problems share family and length with one of another level: at least "
            f"{MIN_PROMPTS} are needed; level and length can't be told apart here"
        )
    norms = np.concatenate([norms, *(norms[:, rows].mean(1, keepdims=True) for rows in late.values())], axis=1)
    trend = _within_strata(levels[kept], norms[kept], strata[kept], seed, resamples)
    constant = {"n": int(kept.sum()), "strata": len(set(strata[kept])), "n_all": n_all}
    layers = [*traces[0].layers, *late]
    return LEVELS_AT_LENGTH.frame(trend.assign(layer=layers, **constant), seed=seed, model=traces[0].provenance.model)


def _within_strata(levels: Array, norms: Array, strata: NDArray[np.intp], seed: int, resamples: int) -> pd.DataFrame:
    x, y = ranks_within(levels[:, None], strata), ranks_within(norms, strata)
    scale = np.sqrt((x**2).sum() * (y**2).sum(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.where(scale > 1e-12, x[:, 0] @ y / scale, np.nan)
        null = permuted_within(x[:, 0], strata, seed=seed, resamples=resamples) @ y / scale
    null = np.abs(np.nan_to_num(null))
    greatest = null.max(1, keepdims=True)
    weights = prompt_weights(len(x), seed=seed, resamples=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = weights @ (x * y) / np.sqrt((weights @ x**2) * (weights @ y**2))
    bounds = [interval(value, own, len(x)) for value, own in zip(rho.tolist(), draws.T, strict=True)]
    reached = np.abs(np.nan_to_num(rho)) - 1e-12
    return pd.DataFrame(
        {
            "rho": rho,
            "low": [own.low for own in bounds],
            "high": [own.high for own in bounds],
            "p": (1 + (null >= reached).sum(0)) / (1 + resamples),
            "p_max": (1 + (greatest >= reached).sum(0)) / (1 + resamples),
        }
    )
