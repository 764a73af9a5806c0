"""Random sets of latents of the same kind as chosen ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.resampling import Array, generator

SUBSETS = 499

_STRATUM = 25  # latents that firing rate and mean activation tell apart little


def random_sets(acts: csr_array, chosen: Sequence[int], subsets: int, seed: int, *, others: bool = False) -> csr_array:
    """The chosen latents and random ones of the same strata: [latent, 1 + subsets], 1 where a set holds the latent.

    Strata are some 25 latents of neighbouring firing rate and mean activation. Any of its latents may be drawn, chosen
    or not: where choice says nothing of the norm, the chosen set is one like the others. With `others` only those that were not
    chosen, as many of each stratum as it has: where the sets are to show what other latents do.

    Args:
        acts: [token, latent] activations.
        chosen: latents.
        subsets: how many sets.
        seed: of the sets.
        others: whether chosen latents are left out.

    Raises:
        Unmeasurable: none of the chosen is active, or too few others are.
    """
    active = np.flatnonzero(acts.sum(0) > 0)
    rate = np.bincount(acts.indices[acts.data > 0], minlength=acts.shape[1])[active]
    size = np.asarray(acts.sum(0)).ravel()[active] / rate
    is_chosen = np.isin(active, np.asarray(chosen))
    if not is_chosen.any():
        raise Unmeasurable("none of the reasoning features is active on these tokens")
    strata = _strata(rate, size)
    free = sum(1 for s in strata if 0 < is_chosen[s].sum() < len(s))
    beside = int((~is_chosen).sum())
    if not free or beside < 5:
        raise Unmeasurable(
            f"{beside} latents beside the {int(is_chosen.sum())} chosen are active: too few for sets of the same kind"
        )
    pools = [(s[~is_chosen[s]] if others else s, int(is_chosen[s].sum())) for s in strata if is_chosen[s].any()]
    rng = generator(seed)
    columns = [active[is_chosen]]
    for _ in range(subsets):
        drawn = [rng.choice(pool, size=min(count, len(pool)), replace=False) for pool, count in pools]
        columns.append(active[np.concatenate(drawn)])
    rows, column = np.concatenate(columns), np.repeat(np.arange(1 + subsets), [len(c) for c in columns])
    return csr_array((np.ones(len(rows)), (rows, column)), shape=(acts.shape[1], 1 + subsets))


def _strata(rate: NDArray[np.integer], size: Array) -> list[NDArray[np.intp]]:
    by_rate = np.array_split(np.lexsort((size, rate)), max(1, len(rate) // (2 * _STRATUM)))
    return [half for group in by_rate for half in np.array_split(group[np.argsort(size[group], kind="stable")], 2) if len(half)]
