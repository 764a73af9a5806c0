"""Norms of mixed passes, back to their requests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tl_l2norm.engines import by_request
from tl_l2norm.engines.by_request import ByRequest, Read


def passes(rows: list[list[tuple[int, int, int]]]) -> ByRequest:
    """Each pass reads (owner, start, length) of several requests; a value is 100 * owner + position + 0.1 * pass."""
    kept = ByRequest()
    for number, row in enumerate(rows):
        owners, starts, lengths = (np.array(column) for column in zip(*row, strict=True))
        read = Read.of(owners, starts, np.concatenate([[0], np.cumsum(lengths)]))
        values = torch.tensor(100 * read.owners + read.positions + 0.1 * number, dtype=torch.float32)
        kept.note(read, torch.stack([values, -values]))
    return kept


MIXED = [[(0, 0, 4), (1, 0, 2)], [(1, 2, 3), (0, 4, 1)], [(0, 5, 1), (2, 0, 1)]]


@pytest.mark.parametrize("sort_at", [0, 3, 1 << 16])
def test_each_request_gets_its_own_in_order(sort_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_request, "_SORT_AT", sort_at)
    kept = passes(MIXED)
    expected = {0: [0, 1, 2, 3, 4.1, 5.2], 1: [100, 101, 102.1, 103.1, 104.1], 2: [200.2]}
    for owner, values in expected.items():
        taken = kept.take(owner, len(values)).values
        assert taken.dtype == torch.float32
        torch.testing.assert_close(taken, torch.tensor([values, [-x for x in values]]))
    with pytest.raises(KeyError):
        kept.take(0, 1)  # forgotten


@pytest.mark.parametrize("sort_at", [0, 1 << 16])
def test_what_is_read_again_is_what_stays(sort_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_request, "_SORT_AT", sort_at)
    kept = passes([[(0, 0, 3)], [(0, 3, 1)], [(0, 0, 2)], [(0, 2, 2)], [(0, 4, 1)]])
    torch.testing.assert_close(kept.take(0, 5).values[0], torch.tensor([0.2, 1.2, 2.3, 3.3, 4.4]))


def test_more_than_is_asked_for_is_left_out_and_less_is_an_error() -> None:
    assert passes(MIXED).take(1, 2).values[0].tolist() == [100, 101]
    with pytest.raises(RuntimeError, match="no pass read position 6 of request 0, of 7"):
        passes(MIXED).take(0, 7)
