"""Samples of the same problems: what acts on norm and correctness alike (length, log-probability), and what the norm adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_l2norm.analysis.conditional_logit import RIDGE, Groups, draw, fit, moments
from tl_l2norm.analysis.inversion import VALUES, evidence, lower_end, upper_end
from tl_l2norm.core.resampling import Array, generator, interval, prompt_weights

_MOST_KNOTS, _PROBLEMS_PER_KNOT, _LEFT_PER_KNOT = 4, 12, 36
_FOLDS, _CHUNK = 5, 1 << 24  # elements


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Covariates:
    """Smooth functions of log length and log-probability, each of mean 0 within problems and of variance 1.

    Both are taken apart into the problem's mean and the deviation from it. Functions of the deviation and of the whole: powers
    to the second, and hinges at quantiles, up to 4 of each, one for 12 problems and for 36 samples beyond the three that each
    problem's mean and lines take (at 4 samples one for 36 problems), with them the third power.
    """

    held: NDArray[np.bool_]
    """[problem, sample]"""
    lines: tuple[Array, Array]
    """[problem, sample] each: log length minus the problem's mean, and log-probability likewise, less its part along that."""
    free: Array
    """[problem, sample, covariate] those that the lines hold: both deviations, and those times the problem's means."""
    shared: Array
    """[problem, sample, covariate] all others, without what goes along lines of each problem's own."""

    @classmethod
    def of(cls, log_length: Array, log_prob: Array, held: NDArray[np.bool_]) -> Covariates:
        """From [problem, sample] each."""
        deviation, centre = _parts(log_length, held)
        certain, usual = _parts(log_prob, held)
        left = int(held.sum()) - 3 * len(held)
        knots = min(_MOST_KNOTS, len(held) // _PROBLEMS_PER_KNOT, left // _LEFT_PER_KNOT)
        lines = deviation, _without(certain, deviation)
        shared = [deviation**2, deviation**2 * centre, certain**2]
        shared += [deviation**3, certain**3] if knots else []
        shared += [
            hinge for x in (deviation, deviation + centre, certain, certain + usual) for hinge in _hinges(x, held, knots)
        ]
        linear = deviation, deviation * centre, certain, certain * usual
        free = np.stack([_unit(_centred(x, held), held) for x in linear], axis=-1)
        made = [_unit(_without(_centred(x, held), *lines), held) for x in shared]
        return cls(held=held, lines=lines, free=free, shared=np.stack(made, axis=-1))

    @property
    def all(self) -> Array:
        """Of both kinds: [problem, sample, covariate]."""
        return np.concatenate([self.free, self.shared], axis=-1)

    def beside(self, x: Array) -> Array:
        """All covariates with each of x [layer, problem, sample] behind them: [layer, problem, sample, covariate + 1]."""
        z = self.all
        return np.concatenate([np.broadcast_to(z, (len(x), *z.shape)), x[..., None]], axis=-1)

    def standardised(self, x: Array) -> Array:
        """`x` [layer, problem, sample] of mean 0 within problems, per standard deviation within problems, which each problem's
        mean does not shrink: squares over samples - 1 of each.
        """
        unbiased = float(np.sqrt(1 - len(self.held) / self.held.sum()))
        return unbiased * np.stack([_unit(_centred(layer, self.held), self.held) for layer in x])

    def without_lines(self, x: Array) -> Array:
        """`x` less what goes with log length and log-probability along lines of each problem's own."""
        return _without(x, *self.lines)

    def efficient(self, x: Array, covariance: Array) -> Array:
        """`x` less its regression on the shared covariates, samples of a problem weighted by the covariance
        [problem, sample, sample], or of each layer [layer, problem, sample, sample], of their correctness: the score of x is
        then orthogonal to theirs.
        """
        weighted = np.einsum("...gst,gtp->...gsp", covariance, self.shared)
        products = np.einsum("gsp,...gsq->...pq", self.shared, weighted) + RIDGE * np.eye(self.shared.shape[-1])
        along = np.einsum("...gsp,...gs->...p", weighted, x)
        slopes = np.linalg.solve(products, along[..., None])[..., 0]
        return np.asarray(x - np.einsum("gsp,lp->lgs", self.shared, slopes))

    def tolerance(self, x: Array) -> Array:
        """Share of the variance of `x` [layer, problem, sample], of mean 0 within problems, that lines of problems' own and
        shared covariates leave: [layer], 0 to 1. Each sum of squares is over its degrees of freedom, without which few samples
        look explained: samples - 1 of each problem, and less its lines and the shared covariates.
        """
        z = self.shared[self.held]
        lines = sum(((line**2).sum(1) > 1e-9).sum() for line in self.lines)
        whole = int(self.held.sum()) - len(self.held)
        left = whole - int(lines) - int(np.linalg.matrix_rank(z))
        if left <= 0:
            return np.zeros(len(x))
        rest = self.without_lines(x)[:, self.held].T
        rest = rest - z @ np.linalg.lstsq(z, rest, rcond=None)[0]
        variance, own = (x[:, self.held] ** 2).sum(1) / whole, (rest**2).sum(0) / left
        return np.asarray(np.minimum(np.divide(own, variance, out=np.zeros(len(x)), where=variance > 0), 1))


def mixed(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples of the problems with both outcomes."""
    share = samples.groupby("prompt")["correct"].transform("mean")
    return samples[(share > 0) & (share < 1)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedProblems:
    """Samples of the problems with both outcomes."""

    groups: Groups
    norm: Array
    """[layer, problem, sample] per standard deviation within problems, of mean 0 in each problem."""
    rest: Array
    """The same without what goes with log length and log-probability along lines of each problem's own."""
    covariates: Covariates
    cluster: NDArray[np.intp]
    """[problem]"""
    family: NDArray[np.intp]
    """[problem] of which a cluster is a part, or which it is."""

    @classmethod
    def of(cls, samples: pd.DataFrame, names: Sequence[Any], clusters: str) -> MixedProblems:
        """From samples that are `mixed` and the names of the norms' columns."""
        problem = pd.factorize(samples["prompt"])[0]
        place = samples.groupby("prompt").cumcount().to_numpy()
        shape = (problem.max() + 1, place.max() + 1)

        def padded(values: Any) -> Array:
            out = np.zeros(shape)
            out[problem, place] = np.asarray(values, dtype=np.float64)
            return out

        held = padded(np.ones(len(samples))) > 0
        covariates = Covariates.of(np.log(np.where(held, padded(samples["length"]), 1.0)), padded(samples["log_prob"]), held)
        norm = covariates.standardised(np.stack([padded(samples[name]) for name in names]))
        problems = samples.drop_duplicates("prompt")
        return cls(
            groups=Groups(y=padded(samples["correct"]), held=held),
            norm=norm,
            rest=covariates.without_lines(norm),
            covariates=covariates,
            cluster=pd.factorize(problems[clusters])[0].astype(np.intp),
            family=pd.factorize(problems["family"].astype(str))[0].astype(np.intp),
        )

    @property
    def _n_clusters(self) -> int:
        return int(self.cluster.max()) + 1

    def _by_cluster(self, values: Array, axis: int) -> Array:
        """Sums over the problems of each cluster."""
        if self._n_clusters == len(self.cluster):
            return values
        sums = np.moveaxis(values, axis, -1) @ np.eye(self._n_clusters)[self.cluster]
        return np.asarray(np.moveaxis(sums, -1, axis))

    def test(self, seed: int, shuffles: int) -> tuple[Array, Array]:
        """The studentised score of each layer, [layer], and in each shuffle, [shuffle, layer]."""
        t, drawn = self.tests(seed, shuffles)
        return t[-1], drawn[:, -1]

    def tests(self, seed: int, shuffles: int) -> tuple[Array, Array]:
        """The studentised score of each layer without the scores of each family, and at last of all: [family + 1, layer], and
        in each shuffle, [shuffle, family + 1, layer]. What the covariates do is fitted to all families throughout.
        """
        z = self.covariates.all
        eta = z @ fit(self.groups, z[None])[0]
        mean, covariance = moments(self.groups, eta)
        score = self.covariates.efficient(self.rest, covariance)
        weighted = np.einsum("gst,gtp->gsp", covariance, z)
        inverse = np.linalg.inv(np.einsum("gsp,gsq->pq", z, weighted) + RIDGE * np.eye(z.shape[-1]))

        def studentised(y: Array) -> Array:
            residual = y - mean
            step = np.einsum("bgs,gsp->bp", residual, z, optimize=True) @ inverse  # of Newton's method, in each shuffle
            residual = residual - np.einsum("bp,gsp->bgs", step, weighted, optimize=True)
            return self._without_families(np.einsum("lgs,bgs->blg", score, residual, optimize=True))

        rng, at_once = generator(seed), max(1, _CHUNK // score.size)
        counts = [min(at_once, shuffles - start) for start in range(0, shuffles, at_once)]
        drawn = np.concatenate([studentised(draw(self.groups, eta, rng, count)) for count in counts])
        return studentised(self.groups.y[None])[0], drawn

    def _without_families(self, scores: Array) -> Array:
        """Of [shuffle, layer, problem] the studentised sums without each family, and of all: [shuffle, family + 1, layer]."""
        own = self._by_cluster(scores, -1)
        family = np.zeros(self._n_clusters, dtype=np.intp)
        family[self.cluster] = self.family
        kept = np.concatenate([1 - np.eye(family.max() + 1)[family], np.ones((len(family), 1))], axis=1)
        sums, size = np.moveaxis(own @ kept, -1, 1), np.sqrt(np.moveaxis(own**2 @ kept, -1, 1))
        return _ratio(sums, size)

    def estimates(self, t: Array, critical: Array) -> dict[str, Array]:
        """By layer beta with its interval, what speaks against 0 in the sense of `inversion.evidence`, and the share of the
        norm that covariates leave.

        Args:
            t: [layer] of the `test`.
            critical: [layer] how large |t| must be; the interval reaches to the farthest beta that it doesn't reject so.
        """
        beta, critical = fit(self.groups, self.covariates.beside(self.rest))[:, -1], np.minimum(critical, 1e6)
        others: Array | float = 0.0

        def test(at: Array) -> Array:
            nonlocal others
            found, others = self._t(at, others)
            return found

        by_value = np.empty((len(VALUES), len(beta)))
        for side in (
            VALUES <= 0,
            VALUES > 0,
        ):  # from 0 outwards: the others move little from one to the next
            others = 0.0
            for i in sorted(np.flatnonzero(side), key=lambda i: abs(VALUES[i])):
                by_value[i] = test(np.full(len(beta), VALUES[i]))
        by_value[VALUES == 0] = t
        low, high = (end(test, by_value, beta, critical) for end in (lower_end, upper_end))
        found = {"beta": beta, "low": low, "high": high, "evidence": evidence(by_value, beta)}
        return {**found, "tolerance": self.covariates.tolerance(self.norm)}

    def _t(self, beta: Array, start: Array | float = 0.0) -> tuple[Array, Array]:
        """The statistic of the `test` where beta is this, [layer], and the other coefficients, fitted from `start` on:
        [layer, covariate].
        """
        z, offset = self.covariates.all, beta[:, None, None] * self.rest
        own = fit(self.groups, np.broadcast_to(z, (len(beta), *z.shape)), offset=offset, start=start)
        mean, covariance = moments(self.groups, np.einsum("gsp,lp->lgs", z, own) + offset)
        score, weighted = self.covariates.efficient(self.rest, covariance), covariance @ z
        residual = self.groups.y - mean
        information = np.einsum("gsp,lgsq->lpq", z, weighted) + RIDGE * np.eye(z.shape[-1])
        step = np.linalg.solve(information, np.einsum("lgs,gsp->lp", residual, z)[..., None])[..., 0]
        residual = residual - np.einsum("lp,lgsp->lgs", step, weighted)
        return _studentised(self._by_cluster(np.einsum("lgs,lgs->lg", score, residual), -1)), own

    def aucs(self, seed: int, resamples: int) -> dict[str, Array]:
        """Shares of pairs of a right and a wrong response to one problem that are ranked right, by layer."""
        fold = generator(seed).permutation(self._n_clusters)[self.cluster] % _FOLDS
        wins, pairs = {}, pair_counts(self.groups, self.norm)[1]
        wins["auc_norm"] = pair_counts(self.groups, self.norm)[0]
        for name, x in (("auc_without", self.covariates.all[None]), ("auc_with", self.covariates.beside(self.rest))):
            eta = np.zeros(x.shape[:3])
            for k in range(_FOLDS):
                weights = np.broadcast_to((fold != k).astype(float), x.shape[:2])
                beta = fit(self.groups, x, weights)
                eta = np.where((fold == k)[:, None], np.einsum("fgsp,fp->fgs", x, beta), eta)
            wins[name] = np.broadcast_to(pair_counts(self.groups, eta)[0], self.norm.shape[:2])
        found = {name: won.sum(1) / pairs.sum() for name, won in wins.items()}
        difference = self._by_cluster(wins["auc_with"] - wins["auc_without"], 1)
        total = self._by_cluster(pairs, 0)
        weights = prompt_weights(len(total), seed=seed, resamples=resamples)
        gains = [interval(float(d.sum() / total.sum()), (weights @ d) / (weights @ total), len(total)) for d in difference]
        found["gain"], found["gain_low"], found["gain_high"] = np.array([[g.mean, g.low, g.high] for g in gains]).T
        return found


def _studentised(scores: Array) -> Array:
    """Sums over clusters [..., cluster] per root of their squares; 0 where there are none."""
    return _ratio(scores.sum(-1), np.sqrt((scores**2).sum(-1)))


def _ratio(sums: Array, size: Array) -> Array:
    return np.asarray(np.divide(sums, size, out=np.zeros_like(size), where=size > 1e-9))


def pair_counts(groups: Groups, score: Array) -> tuple[Array, Array]:
    """Of the pairs of a right and a wrong sample of each problem, in how many the right one's score is higher (ties half):
    [layer, problem]; and how many there are: [problem].
    """
    right, wrong = groups.y > 0, groups.held & (groups.y == 0)
    pairs = right[:, :, None] & wrong[:, None, :]
    difference = score[..., :, None] - score[..., None, :]
    higher = (difference > 1e-9) + 0.5 * (np.abs(difference) <= 1e-9)
    return np.where(pairs, higher, 0).sum((-2, -1)), pairs.sum((-2, -1)).astype(np.float64)


def _parts(x: Array, held: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Deviations [problem, sample] from each problem's mean, and those means [problem, 1] from their own, both over the
    standard deviation within problems; 0 where x doesn't vary there.
    """
    deviation = _centred(x, held)
    scale = float(np.sqrt((deviation[held] ** 2).mean()))
    if scale <= 1e-9:
        return np.zeros_like(x), np.zeros((len(x), 1))
    mean = np.where(held, x, 0).sum(1, keepdims=True) / held.sum(1, keepdims=True)
    return deviation / scale, (mean - mean.mean()) / scale


def _centred(x: Array, held: NDArray[np.bool_]) -> Array:
    """Minus the mean of each problem's samples; 0 where there is no sample."""
    mean = np.where(held, x, 0).sum(-1, keepdims=True) / held.sum(-1, keepdims=True)
    return np.where(held, x - mean, 0.0)


def _unit(x: Array, held: NDArray[np.bool_]) -> Array:
    """Over its standard deviation; 0 where it doesn't vary."""
    scale = float(np.sqrt((x[held] ** 2).mean()))
    return x / scale if scale > 1e-9 else np.zeros_like(x)


def _without(x: Array, *lines: Array) -> Array:
    """`x` [..., problem, sample] less its projection on each of these lines, orthogonal to each other, in each problem."""
    for line in lines:
        size = (line**2).sum(-1, keepdims=True)
        slope = np.divide((x * line).sum(-1, keepdims=True), size, out=np.zeros((*x.shape[:-1], 1)), where=size > 1e-9)
        x = x - slope * line
    return x


def _hinges(x: Array, held: NDArray[np.bool_], knots: int) -> list[Array]:
    return [np.maximum(x - at, 0) for at in np.quantile(x[held], np.linspace(0, 1, knots + 2)[1:-1])]
