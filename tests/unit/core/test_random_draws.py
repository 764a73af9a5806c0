import torch
from hypothesis import given
from hypothesis import strategies as st

from tl_l2norm.core.random_draws import hash_keys, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix_fold(*keys: int) -> int:
    """The same in plain Python integers modulo 2^64."""
    m = (1 << 64) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & m
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & m
        return x ^ (x >> 31)

    state = 0
    for key in keys:
        state = mix(((state ^ mix(key & m)) + 0x9E3779B97F4A7C15) & m)
    return state


@given(st.lists(INT64, min_size=1, max_size=4))
def test_it_is_splitmix64(keys: list[int]) -> None:
    assert int(hash_keys(*keys)) & ((1 << 64) - 1) == splitmix_fold(*keys)


@given(st.lists(INT64, min_size=2, max_size=4))
def test_it_goes_on_from_a_prefix(keys: list[int]) -> None:
    *first, last = keys
    assert hash_keys(last, start=hash_keys(*first)) == hash_keys(*keys)
    columns = [torch.tensor([key]) for key in keys]
    assert hash_keys(columns[-1], start=hash_keys(*columns[:-1])) == hash_keys(*keys)


def test_a_draw_does_not_depend_on_those_beside_it() -> None:
    sequences = torch.arange(50)
    together = uniform(3, sequences, 7)
    assert [float(uniform(3, int(s), 7)) for s in sequences] == together.tolist()


def test_draws_are_uniform_and_independent_of_each_key() -> None:
    draws = uniform(torch.arange(100)[:, None], torch.arange(1000)[None])
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    counts = torch.histc(draws.float(), bins=20, min=0, max=1)
    chi2 = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi2 < 43.8  # 99.9% point of chi-squared with 19 degrees of freedom
    assert torch.corrcoef(draws)[~torch.eye(100, dtype=torch.bool)].abs().max() < 0.2  # 6 standard errors
