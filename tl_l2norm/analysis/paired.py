"""Two arms on the same problems: how far apart they are, whether by chance, and what a number of problems can see.

An arm's outcome of a problem is the share of its responses to it that are right: 0 or 1 where it gives one. Responses to one
problem are not independent, so that problems are what is resampled, with all their responses (Davison & Hinkley, "Bootstrap
Methods", 1997, section 3.8: of clusters, the clusters alone), and what p-values count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, ttest_1samp

from tl_l2norm.analysis.response_worth import Counts, score_interval, worth
from tl_l2norm.core.arguments import as_integer, as_share
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.paired_shares import paired_shares
from tl_l2norm.core.resampling import RESAMPLES, Estimate, estimate, generator
from tl_l2norm.core.sign_flips import sign_flips

MCNEMAR, SIGN_FLIPS, DEALT, RANDOM_CHOICE = "exact McNemar", "sign flips", "sign flips, dealt anew", "random choice"
"""How a p-value was had, see `compare`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """How an arm's outcomes differ from another's on the same problems."""

    difference: Estimate
    """Mean over problems, with its 95% interval."""
    better: int
    """Problems of which the arm gets more."""
    worse: int
    """Problems of which it gets less."""
    p: float
    """Two-sided, that they differ by chance."""
    test: str
    """How p was had: `MCNEMAR`, `SIGN_FLIPS`, `DEALT` or `RANDOM_CHOICE`."""


def compare(
    own: NDArray[np.floating],
    other: NDArray[np.floating],
    *,
    responses: tuple[Counts, Counts] = (1, 1),
    chosen: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Paired:
    """An arm beside another one.

    Where problems differ by -1, 0 or 1, the interval is the score interval of paired shares and the test McNemar's, exact;
    elsewhere problems are resampled, and p flips the signs of their differences; where one arm's responses count for more than
    the other's (`worth`), it is the greater of that and `dealt_anew`. The interval is then no narrower than `score_interval`.
    With `chosen`, p is the exact probability that a random choice among the same responses gets as many right, or as few.

    Args:
        own: [problem] share of the arm's responses that are right.
        other: [problem] the same of the other arm.
        responses: of the arm and of the other one to each problem, one number or [problem].
        chosen: whether the arm gives one response to each problem, chosen from the other's.
        seed: of resamples and signs.
        resamples: how many.

    Raises:
        InputError: other shapes or values; a choice that the other arm doesn't hold.
        Unmeasurable: no problems.

    Examples:
        >>> own, other = np.array([1.0] * 9 + [0.0]), np.array([1.0] * 4 + [0.0] * 5 + [1.0])
        >>> one = compare(own, other)
        >>> print(one.difference, one.better, one.worse, one.p)
        0.4 [-0.08729, 0.7201], n = 10 5 1 0.21875
    """
    own, other = (np.asarray(x, dtype=np.float64) for x in (own, other))
    if own.shape != other.shape or own.ndim != 1:
        raise InputError(f"arms are compared on the same problems, [problem] each, got {own.shape} and {other.shape}")
    if not len(own):
        raise Unmeasurable("no problems to compare arms on")
    if not (((own >= 0) & (own <= 1)).all() and ((other >= 0) & (other <= 1)).all()):
        raise InputError("outcomes are shares of right responses, between 0 and 1")
    values = own - other
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    if chosen:
        p, test = random_choice(own, other), RANDOM_CHOICE
    elif _are_shares(values):
        p, test = mcnemar(better, worse), MCNEMAR
    else:
        p, test = float(sign_flips(values[:, None], seed=seed, flips=resamples).p[0]), SIGN_FLIPS
        counts = worth(own, other, responses)
        if np.not_equal(*counts).any():
            p, test = max(p, dealt_anew(own, other, counts, seed=seed, draws=resamples)), DEALT
    difference = mean_difference(values, seed=seed, resamples=resamples)
    if not _are_shares(values):
        low, high = score_interval(own, other, responses)
        difference = replace(difference, low=min(difference.low, low), high=max(difference.high, high))
    return Paired(difference=difference, better=better, worse=worse, p=p, test=test)


def mean_difference(values: NDArray[np.floating], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over problems: with the score interval of paired shares where they differ by -1, 0 or 1, else by resampling them.

    Args:
        values: [problem] one arm's outcome minus another's; NaN is left out.
        seed: of the resampling.
        resamples: how many.
    """
    return paired_shares(values) if _are_shares(values) else estimate(values, seed=seed, resamples=resamples)


def _are_shares(values: NDArray[np.floating]) -> bool:
    return bool(np.isin(values[~np.isnan(values)], (-1, 0, 1)).all())


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test: of the problems on which arms differ, each goes either way with even chances.

    Examples:
        >>> mcnemar(5, 1), mcnemar(0, 0)
        (0.21875, 1.0)
    """
    n = as_integer("better", better, least=0) + as_integer("worse", worse, least=0)
    return float(binomtest(better, n).pvalue) if n else 1.0


def random_choice(chosen: NDArray[np.floating], shares: NDArray[np.floating]) -> float:
    """Two-sided exact p that a random choice among each problem's responses gets as many right as this one did, or as few.

    Where the choice knows nothing of what is right, a problem's chosen response is right with the probability of its share, and
    the number of right ones has the distribution of a sum of such draws (Poisson binomial). Twice the smaller tail.

    Args:
        chosen: [problem] 1 where the chosen response is right, else 0.
        shares: [problem] share of its responses that are right.

    Raises:
        InputError: a choice that isn't among the responses.

    Examples:
        >>> random_choice(np.ones(4), np.full(4, 0.5))  # 1 in 16, and as much below
        0.125
    """
    if not np.isin(chosen, (0, 1)).all() or ((shares == 0) & (chosen == 1)).any() or ((shares == 1) & (chosen == 0)).any():
        raise InputError("what is chosen is one of the problem's responses: right, 1, or wrong, 0, as some of them are")
    chances = np.ones(1)
    for share in shares:
        chances = np.convolve(chances, [1 - share, share])
    right = int(chosen.sum())
    return float(min(1.0, 2 * min(chances[: right + 1].sum(), chances[right:].sum())))


def dealt_anew(
    own: NDArray[np.floating],
    other: NDArray[np.floating],
    responses: tuple[Counts, Counts],
    *,
    seed: int = 0,
    draws: int = RESAMPLES,
) -> float:
    """Two-sided p that the arms differ by as much where each problem's responses are dealt to them anew, as many to each.

    The difference of one response from the mean of several is lopsided: where nearly all are right it gains a little often and
    loses much seldom, so that its sign can't be flipped (20 problems, 93% right: p is at most 0.05 in 22% of null runs).

    Args:
        own: [problem] share of the arm's responses that are right.
        other: [problem] the same of the other arm.
        responses: of the arm and of the other one to each problem.
        seed: of the draws.
        draws: how many.

    Examples:
        >>> print(f"{dealt_anew(np.ones(4), np.full(4, 0.5), (1, 8)):.1f}")  # 5 of 9 right: 2 (5/9)^4
        0.2
    """
    k, m = (np.broadcast_to(np.asarray(counts, dtype=np.int64), own.shape) for counts in responses)
    right = np.rint(own * k + other * m).astype(np.int64)
    dealt = generator(seed).hypergeometric(right, k + m - right, k, size=(draws, len(own)))
    drawn, found = (dealt / k - (right - dealt) / m).mean(1), float((own - other).mean())
    tails = ((1 + (sign * drawn >= sign * found - 1e-12).sum()) / (draws + 1) for sign in (1, -1))
    return float(min(1.0, 2 * min(tails)))


def p_loss(values: NDArray[np.floating], margin: float) -> float:
    """One-sided p of a t-test that the arm loses the margin or more, with one more problem at which all is lost: else few
    problems without a loss would pass for no loss at all.

    Args:
        values: [problem] the arm's outcome minus the other's; NaN is left out.
        margin: of accuracy, over 0.

    Examples:
        >>> bool(p_loss(np.zeros(20), 0.1) > 0.05), bool(p_loss(np.zeros(60), 0.1) < 0.05)
        (True, True)
    """
    losses = -np.asarray(values, dtype=np.float64)
    losses = np.append(losses[~np.isnan(losses)], 1.0)
    if np.ptp(losses) == 0:
        return 1.0
    return float(ttest_1samp(losses, margin, alternative="less").pvalue)


def exact_p_loss(better: int, worse: int, n: int, margin: float) -> float:
    """One-sided p that an arm loses the margin or more, of single responses: the exact probability of so many better less worse
    ones, the greatest for any share of problems on which arms differ that the data leave (Berger and Boos 1994, Journal of the
    American Statistical Association 89:1012).

    Args:
        better: problems that the arm alone gets right.
        worse: those that the other alone does.
        n: all of them.
        margin: of accuracy, over 0.

    Examples:
        >>> exact_p_loss(0, 0, 20, 0.1) > 0.05, exact_p_loss(0, 0, 60, 0.1) < 0.05
        (True, True)
    """
    left_out = 1e-4  # probability that the share is outside of the interval, which p is raised by
    share = binomtest(better + worse, n).proportion_ci(1 - left_out)
    differ = np.linspace(max(margin, share.low), max(margin, share.high), 101)[:, None]
    k = np.arange(n + 1)
    least = np.ceil((k + better - worse) / 2)  # better ones, of k that differ
    tail = (binom.pmf(k, n, differ) * binom.sf(least - 1, k, (differ - margin) / (2 * differ))).sum(1)
    return float(min(1.0, tail.max() + left_out))


def mcnemar_power(n: int, discordance: float, difference: float, *, alpha: float = 0.05) -> float:
    """Probability that the exact McNemar test finds an arm better that is: over how many problems differ, then which way.

    `sum_k Binomial(k; n, d) P(B >= c_k)`, B of k draws with probability `(d + delta) / 2d`, c_k the least number at which the
    test of k problems refuses chance.

    Args:
        n: problems.
        discordance: d, share of the problems that one arm gets right and the other wrong.
        difference: delta of accuracy, no more than that.
        alpha: of the two-sided test.

    Examples:
        >>> print(f"{mcnemar_power(100, 0.3, 0.2):.2f}")  # the normal approximation says 0.97
        0.96
    """
    if not 0 < difference <= discordance <= 1:
        raise InputError(
            f"a difference is over 0 and at most the share of problems on which arms differ, got {difference:g} of "
            f"{discordance:g}"
        )
    k = np.arange(n + 1)
    least = k - binom.ppf(alpha / 2, k, 0.5)  # at most one too few
    least = np.where(2 * binom.sf(least - 1, k, 0.5) <= alpha, least, least + 1)
    found = binom.sf(least - 1, k, (discordance + difference) / (2 * discordance))
    return float((binom.pmf(k, n, discordance) * found).sum())


def smallest_difference(n: int, *, discordance: float, tests: int = 1, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of accuracy that n problems with one response each show with this power, by `mcnemar_power`.

    Of several tests the first of Holm's procedure has to pass, at `alpha / tests`. A difference that is larger than the
    discordance is one of arms that never differ the other way. Several responses to a problem show less than this: how much
    less depends on how problems differ.

    Args:
        n: problems.
        discordance: share of them that one arm gets right and the other wrong: a guess, made before the run.
        tests: arms that are corrected for together.
        power: probability to find it.
        alpha: of all tests together.

    Returns:
        The difference; NaN where problems are so few that not even one of all of them shows.

    Examples:
        >>> print(f"{smallest_difference(200, discordance=0.2):.3f}, {smallest_difference(5, discordance=0.2)}")
        0.091, nan
    """
    n, tests = as_integer("n", n, least=1), as_integer("tests", tests, least=1)
    discordance, power = as_share("discordance", discordance), as_share("power", power)
    if discordance == 0 or not 0 < power < 1:
        raise InputError("a discordance of 0 says that arms never differ, and a power of 0 or 1 nothing: give what is between")

    def lacking(difference: float) -> float:
        return mcnemar_power(n, max(discordance, difference), difference, alpha=alpha / tests) - power

    return float("nan") if lacking(1.0) < 0 else float(brentq(lacking, 1e-9, 1.0))
