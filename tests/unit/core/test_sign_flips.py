import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from tl_l2norm.core.sign_flips import random_signs, sign_flips


def p(*values: float, flips: int = 2000) -> float:
    return float(sign_flips(np.array(values, dtype=float)[:, None], flips=flips).p[0])


def test_of_few_prompts_all_flips_are_counted() -> None:
    assert p(1, 2, 3) == 2 / 8, "of 8 means, 2 and -2 are as far out"
    assert p(1, -1, np.nan) == 1 and np.isnan(p(np.nan)) and p(0, 0) == 1
    assert {tuple(row) for row in random_signs(3, seed=0, flips=19)} == set(itertools.product((1.0, -1.0), repeat=3))


def test_of_many_prompts_the_measured_one_is_among_the_draws() -> None:
    assert p(*np.ones(40), flips=99) == 1 / 100
    assert random_signs(40, seed=0, flips=99).shape == (100, 40) and (random_signs(40, seed=0, flips=99)[0] == 1).all()


def test_over_columns_the_greatest_counts() -> None:
    """Of four flips of two prompts, (1, 1) is as far out in two; in the second column all are."""
    values = np.array([[1.0, 1.0], [1.0, -1.0]])
    found = sign_flips(values)
    assert found.p.tolist() == [0.5, 1.0]
    assert found.p_max.tolist() == [1.0, 1.0], "each flip makes one of the two columns add up"


@pytest.mark.parametrize("n", [10, 30])
def test_scale_of_a_column_does_not_matter(n: int) -> None:
    values: NDArray[np.float64] = np.random.default_rng(n).normal(0.3, 1, size=(n, 3))
    a, b = sign_flips(values), sign_flips(values * [1, 1e-3, 1e4])
    np.testing.assert_allclose(a.p, b.p)
    np.testing.assert_allclose(a.p_max, b.p_max)


def test_an_infinite_value_is_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        p(1, 2, np.inf)
