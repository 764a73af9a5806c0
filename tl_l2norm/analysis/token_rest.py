"""What token types, places and lengths don't explain of a quantity, token by token and prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.sparse.linalg import lsmr

from tl_l2norm.analysis.covariates import Integers, Projection, indicators, log_powers, smooth
from tl_l2norm.analysis.pairing import Tokens, meant
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import Array
from tl_l2norm.core.trace import Trace

_NOTHING = 1e-9  # of a mean: what is smaller is rounding
_MOST_STEPS = 2000  # of least squares


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseTokens:
    """Tokens of all prompts' responses of one mode, without those that are sinks at any layer.

    The covariates are token id, smooth index in the response, smooth position in the sequence, and powers 1 to 3 of the log
    lengths of response and prompt.
    """

    prompt: NDArray[np.intp]
    """[token] number of its prompt."""
    projection: Projection
    places: csr_array
    """[token, covariate] of index and position alone."""
    token: NDArray[np.intp]
    """[token] id."""
    amounts: Array
    """[token, layer]"""
    n_prompts: int

    @classmethod
    def of(cls, members: Sequence[Sequence[Trace]], read: Callable[[Trace], Array], tokens: Tokens) -> ResponseTokens:
        """Of each prompt's traces; `read` gives [layer, pos].

        Raises:
            Unmeasurable: no response has a token that is no sink.
        """
        facts, amounts = [], []
        for number, traces in enumerate(members):
            for trace in traces:
                at = np.flatnonzero((meant(trace, tokens) & ~trace.is_sink.any(0)).numpy())
                own = number, trace.tokens.numpy()[at], at, trace.prompt_len, len(trace) - trace.prompt_len
                facts.append(np.stack(np.broadcast_arrays(*own)))
                amounts.append(read(trace)[:, at])
        prompt, token, position, before, length = np.concatenate(facts, axis=1)
        if not len(prompt):
            raise Unmeasurable("no response has a token that is an attention sink at no layer")
        places = smooth(position - before), smooth(position)
        projection = Projection.on(indicators(token), *places, log_powers(length), log_powers(before))
        every = np.concatenate(amounts, axis=1).T
        held = {"projection": projection, "places": csr_array(hstack(places)), "amounts": every}
        return cls(prompt=prompt, token=token, n_prompts=len(members), **held)

    @property
    def level(self) -> Array:
        """[layer] mean over tokens."""
        mean: Array = self.amounts.mean(0)
        return mean

    def rest(self) -> Array:
        """[prompt, layer] mean over tokens of what the covariates don't explain; NaN at a layer where a token has no amount."""
        held = ~np.isnan(self.amounts).any(0)
        means = self._means(self.projection.rest(np.where(held, self.amounts, 0.0)))
        means[:, held] *= np.abs(means[:, held]) > _NOTHING * np.abs(self.level[held])
        means[:, ~held] = np.nan
        return means

    def at_equal_types(self) -> Array:
        """[prompt, layer] what the prompts' means would be, were all token types and places as frequent in each.

        Of a fit of prompts, token ids, smooth index and smooth position together, in which types and places are told from
        what differs within prompts; about the mean of all tokens that count, those whose id another prompt has as well. NaN for
        a prompt without such tokens.
        """
        pairs = np.unique(np.stack([self.token, self.prompt]), axis=1)
        ids, counts = np.unique(pairs[0], return_counts=True)
        kept = np.isin(self.token, ids[counts > 1])
        means = np.full((self.n_prompts, self.amounts.shape[1]), np.nan)
        if not kept.any():
            return means
        prompt, amounts = self.prompt[kept], self.amounts[kept]
        names, index = np.unique(prompt, return_inverse=True)
        fit = Projection.on(indicators(prompt), indicators(self.token[kept]), csr_array(self.places[kept]))
        level = amounts.mean(0)
        own = (fit.inverse @ (fit.covariates.T @ (amounts - level)))[: len(names)]
        means[names] = level + own - own[index].mean(0)
        return means

    def of_prompts(self, x: Array) -> Array:
        """The same of figures of whole prompts [prompt], which each of their tokens has."""
        rest: Array = self._means(self.projection.rest(x[self.prompt])[:, None])[:, 0]
        return rest

    def _means(self, rest: Array) -> Array:
        """[prompt, column] of [token, column]; 0 for a prompt without tokens."""
        sums = np.zeros((self.n_prompts, rest.shape[1]))
        np.add.at(sums, self.prompt, rest)
        means: Array = sums / np.maximum(np.bincount(self.prompt, minlength=self.n_prompts), 1)[:, None]
        return means


def response_levels(response: Integers, token: Integers, index: Integers, values: Array) -> Array:
    """The level of each response beside its tokens' types and places: [response], about the mean over tokens.

    Least squares of value = response + type + smooth index. What a type adds is thus read off tokens of the same response,
    and nothing that raises a response whole goes into it.

    Args:
        response: [token] number of its response, from 0 on, each with a token.
        token: [token] id.
        index: [token] in the response.
        values: [token]
    """
    groups, middle = indicators(response), values.mean()
    design = hstack([groups, indicators(token), smooth(index)]).tocsr()
    levels = lsmr(design, values - middle, atol=1e-12, btol=1e-12, conlim=0, maxiter=_MOST_STEPS)[0][: groups.shape[1]]
    return np.asarray(levels - (levels[response]).mean() + middle)
