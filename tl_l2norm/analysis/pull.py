"""Whether norms record the pull of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from tl_l2norm.analysis.covariates import (
    LAST,
    OCCURRENCES,
    Integers,
    Projection,
    before,
    indicators,
    occurrence,
    own_curves,
    pooled,
    ranks_within,
    smooth,
    to_end,
)
from tl_l2norm.analysis.token_tables import as_tokens
from tl_l2norm.core.arguments import as_integer
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.measured import PRESSURES
from tl_l2norm.core.resampling import MIN_PROMPTS, RESAMPLES, Array, estimate, generator
from tl_l2norm.core.schema import SEED, Column, N, Schema, ends
from tl_l2norm.core.sign_flips import sign_flips

SHIFTS = 1999
MIN_TOKENS = 8
"""A rank correlation over fewer tokens of a response says nothing."""

_LEAST_SHIFTS = 79  # fewer give no two-sided p of 0.05 for either of two readings
_MOST_SHIFTS = 1_000_000
_AT_ONCE = 64  # shifts
_TOLERANCE = 0.001  # ranks of a norm that drifts hold little else, and yet that little can be told from chance
_POOLED_BELOW = 3  # tokens: the other token's ids of fewer have one indicator together
_FAR, _FAR_POOLED_BELOW = 2, 20  # tokens before the state's whose ids count, and of how many tokens an id then has its own
_DEGREE = 5  # of each response's own curve
_SHARES = 100  # of a response, to which its index is rounded

_IDS = ("state_token_id", "token_id")
READINGS = {
    "predicting": ("state_token_id", "l2_norm", "is_sink", "token_id"),
    "read back": ("token_id", "next_l2_norm", "next_is_sink", "state_token_id"),
}
"""Of whose state the norm is: of the token from which the true one is predicted, or of the true one itself, one position later.
To each the columns of its token id, norm, whether it is a sink, and the other token's id."""

PULL_LINKS = Schema(
    "links of the pull with the norm",
    "pull_link",
    (
        Column("mode", str, '"think" or "direct"'),
        Column("reading", str, '"predicting" or "read back": whose state has the norm'),
        Column("rho", float, "partial rank correlation of pull and norm within responses, mean over prompts"),
        *ends("rho"),
        Column("p", float, "two-sided, by flipping the signs of prompts"),
        Column("shifts_mean", float, "the same where the pull is shifted within its response, mean of the shifts"),
        *ends("shifts", prefix=True, kind="central 95% of the shifts"),
        Column("p_shifts", float, "two-sided: how many shifts lie as far out"),
        N,
        Column("n_tokens", int, "tokens that count"),
        SEED,
    ),
)

_USED = ("mode", "prompt", "sequence", "position", "pull", *dict.fromkeys(n for names in READINGS.values() for n in names))


def pull_link(pressure: pd.DataFrame, *, shifts: int = SHIFTS, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Rank correlation of the pull `||dL/dy||` with the norm, with all that acts on both taken out.

    Over the tokens of a response, ranks of both, with what both token ids (the one that is read and the one that is predicted;
    of that whose state it isn't, ids with fewer than 3 tokens together), the ids of the two tokens before the state's (fewer
    than 20 together), how often either type was in the response before (up to 8), the last six places, smooth index, smooth
    share of the response and a curve of each response's own (up to degree 5, one for every 5 tokens) explain taken out; then
    the mean over prompts. `p` flips the signs of prompts. Beside it the same with the pull shifted round its response by a
    random amount each, which keeps its distribution, drift and autocorrelation, and unties it from the token: `p_shifts` is
    twice the share of shifts, the data's own among them, whose rho is as high, or as low.

    Only tokens whose type occurs again, of responses with 8 of them or more; of responses to a prompt that are the same tokens
    one counts. Norms that follow the token before too, and pulls that follow both, got a verdict in 2 of 80 worlds; bumps of
    each response's own half way in 7 of 80; first occurrences of a type or the last three tokens that are loud and of high
    pull in 0 of 40 (39 and 13 without what stands round a token), the two tokens behind a full stop in 3 of 40. What comes from
    tokens further back, from pairs of types, from the prompt's tokens, or from drift that is rougher than a polynomial is still
    left in both: sections of 5 to 15 tokens, loud and of high pull together by 0.7 deviations, get a verdict in 38 of 40.

    A claim of two readings takes twice p and p_shifts: of 8 prompts no p is under 2 of 256 flips, of 79 shifts no p_shifts
    under 1/40. Beside three or more other claims that are tested, 8 prompts can't be supported after Holm's correction,
    whatever the effect; 11 prompts and the default shifts can beside 20.

    Args:
        pressure: what `optimisation_pressure` returned, with the labels mode and prompt.
        shifts: how many, 79 or more: fewer give no p of 0.05 for either of two readings.
        seed: of shifts, flips and the resampling of prompts.
        resamples: of prompts, and flips.

    Returns:
        One entry per mode and reading, where there are enough tokens: mode, reading ("predicting": the norm of the state from
        which the token is predicted; "read back": that of the token itself, one position later), rho, low, high, p,
        shifts_mean, shifts_low, shifts_high (their central 95%), p_shifts, n (prompts), n_tokens, seed.

    Raises:
        ValueError: labels or values that are missing, a token that is there twice, or several prompts under one number, as of
            two tables that were joined. One prompt under two labels is refused by `optimisation_pressure`, which sees its
            tokens; here it can't be told.
        Unmeasurable: in no mode 8 prompts with 8 tokens of types that occur again, or too few tokens beside the covariates.

    Examples:
        >>> columns = {"state_token_id": 5, "token_id": 5, "is_sink": False, "next_is_sink": False}
        >>> pulls, other = np.random.default_rng(0).random((2, 8, 20))
        >>> parts = [pd.DataFrame({"pull": x, "l2_norm": x, "next_l2_norm": y}) for x, y in zip(pulls, other)]
        >>> parts = [part.assign(prompt=f"p{i}", sequence=i, position=range(20)) for i, part in enumerate(parts)]
        >>> link = pull_link(pd.concat(parts).assign(mode="think", **columns), shifts=99)
        >>> (link.set_index("reading")["p_shifts"] < 0.05).to_dict()
        {'predicting': True, 'read back': False}
    """
    shifts = as_integer("shifts", shifts, least=_LEAST_SHIFTS, most=_MOST_SHIFTS)
    checked = _each_text_once(as_tokens(PRESSURES, pressure, _USED))
    entries, why = [], f"fewer than {MIN_PROMPTS} prompts have {MIN_TOKENS} response tokens of types that occur again"
    for mode, group in checked.groupby("mode", sort=False):
        for reading, names in READINGS.items():
            table = _Tokens.of(group, *names)
            if table is None:
                continue
            summary = _summary(table, shifts, seed, resamples)
            if isinstance(summary, str):
                why = f"nothing can be said of the norm: {summary} (types, place, each response's curve): give more responses"
            else:
                entries.append({"mode": mode, "reading": reading, "n_tokens": len(table.token)} | summary)
    if not entries:
        raise Unmeasurable(why)
    return PULL_LINKS.frame(entries, seed=seed)


def _each_text_once(pressure: pd.DataFrame) -> pd.DataFrame:
    """Of responses to a prompt that are the same tokens the first: copies would be shifted apart, as if each said more."""
    texts = pressure.sort_values(["sequence", "position"], kind="stable").groupby("sequence")
    keys = pd.DataFrame({name: texts[name].agg(tuple) for name in ("state_token_id", "token_id")})
    keys = keys.assign(mode=texts["mode"].first(), prompt=texts["prompt"].first().astype(str))
    return pressure[~pressure["sequence"].isin(keys.index[keys.duplicated()])]


def _summary(table: _Tokens, shifts: int, seed: int, resamples: int) -> dict[str, object] | str:
    """An entry's figures, or why there are none."""
    projection, ranks = table.projection(), ranks_within(table.norm, table.response)
    norm = projection.rest(ranks)
    if why := projection.why_too_little(ranks, norm, table.response, _TOLERANCE):
        return why
    pulls = ranks_within(table.pull, table.response)
    rhos = table.by_prompt(projection.rest(pulls)[:, None], norm)[:, 0]
    null = np.concatenate([table.by_prompt(projection.rest(s), norm).mean(0) for s in table.shifted(pulls, shifts, seed)])
    own = estimate(rhos, seed=seed, resamples=resamples)
    sides = ((null >= own.mean - 1e-12).sum(), (null <= own.mean + 1e-12).sum())
    low, high = np.quantile(null, (0.025, 0.975))
    return {
        "rho": own.mean,
        "low": own.low,
        "high": own.high,
        "p": float(sign_flips(rhos[:, None], seed=seed, flips=resamples).p[0]),
        "shifts_mean": float(null.mean()),
        "shifts_low": float(low),
        "shifts_high": float(high),
        "p_shifts": float(min(1.0, 2 * (1 + min(sides)) / (1 + shifts))),
        "n": own.n,
    }


def _around(group: pd.DataFrame) -> dict[str, Integers]:
    """Columns of what stands round each token of these responses, sorted by position."""
    sequence, states = group["sequence"].to_numpy(), group["state_token_id"].to_numpy()
    return {
        **{f"before_{by}": before(states, sequence, by=by) for by in range(1, 1 + _FAR)},
        **{f"occurrence_{name}": occurrence(group[name].to_numpy(), sequence, most=OCCURRENCES) for name in _IDS},
        "left": to_end(sequence, most=LAST),
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """Tokens of all responses that count, response after response in the order of positions."""

    prompt: Integers
    """[response] number of its prompt."""
    response: Integers
    token: Integers
    other: Integers
    """Of the two tokens, that whose state it isn't."""
    index: Integers
    """In the response."""
    before: Sequence[Integers]
    """Ids of the token before the state's, and of the one before that."""
    occurrences: Sequence[Integers]
    """Of either token, how often its type was there before."""
    left: Integers
    """Tokens to the end of the response."""
    share: Integers
    """The same in hundredths of the response."""
    pull: Array
    norm: Array

    @classmethod
    def of(cls, group: pd.DataFrame, token_name: str, norm_name: str, sink_name: str, other_name: str) -> _Tokens | None:
        """None where too few prompts have enough of them."""
        group = group.sort_values(["sequence", "position"], kind="stable")
        group = group.assign(**_around(group))
        kept = group[~group["is_sink"] & ~group[sink_name]]
        kept = kept[kept.groupby(token_name)[token_name].transform("size") > 1]
        kept = kept[kept.groupby("sequence")["sequence"].transform("size") >= MIN_TOKENS]
        if not len(kept):
            return None
        firsts = group.groupby("sequence")["position"].agg(["min", "max"]).loc[kept["sequence"]]
        index = kept["position"].to_numpy() - firsts["min"].to_numpy()
        length = np.maximum(firsts["max"].to_numpy() - firsts["min"].to_numpy(), 1)
        response = np.unique(kept["sequence"], return_inverse=True)[1]
        owner = kept["prompt"].astype(str).to_numpy()[np.unique(response, return_index=True)[1]]
        prompt = np.unique(owner, return_inverse=True)[1]
        if prompt.max() + 1 < MIN_PROMPTS:
            return None
        return cls(
            prompt=prompt,
            response=response,
            token=kept[token_name].to_numpy(),
            other=kept[other_name].to_numpy(),
            index=index,
            before=[kept[f"before_{by}"].to_numpy() for by in range(1, 1 + _FAR)],
            occurrences=[kept[f"occurrence_{name}"].to_numpy() for name in _IDS],
            left=kept["left"].to_numpy(),
            share=_SHARES * index // length,
            pull=kept["pull"].to_numpy(dtype=np.float64),
            norm=kept[norm_name].to_numpy(dtype=np.float64),
        )

    def projection(self) -> Projection:
        """On all that may act on both."""
        tokens = [indicators(self.token), indicators(pooled(self.other, least=_POOLED_BELOW))]
        tokens += [indicators(pooled(ids, least=_FAR_POOLED_BELOW)) for ids in self.before]
        tokens += [indicators(counts) for counts in self.occurrences]
        places = [indicators(self.left), smooth(self.index), smooth(self.share), own_curves(self.index, self.response, _DEGREE)]
        return Projection.on(indicators(self.response), *tokens, *places)

    def shifted(self, x: Array, shifts: int, seed: int) -> Iterator[Array]:
        """Each response's values shifted round it by at least one place, some shifts at a time: [token, shift]."""
        rng, counts = generator(seed), np.bincount(self.response)
        start = np.repeat(np.cumsum(counts) - counts, counts)
        within, size = np.arange(len(x)) - start, counts[self.response]
        for first in range(0, shifts, _AT_ONCE):
            width = min(_AT_ONCE, shifts - first)
            by = rng.integers(1, counts[:, None], size=(len(counts), width))
            yield x[start[:, None] + (within[:, None] + by[self.response]) % size[:, None]]

    def by_prompt(self, pulls: Array, norm: Array) -> Array:
        """Correlation of each column with the norm in each response, the mean over a prompt's: [prompt, column]."""
        group, members = csr_array(indicators(self.response).T), csr_array(indicators(self.prompt).T)
        scale = np.sqrt((group @ norm**2)[:, None] * (group @ pulls**2))
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.where(scale > 1e-9, (group @ (norm[:, None] * pulls)) / scale, 0.0)
        mean: Array = (members @ rho) / members.sum(1)[:, None]
        return mean
