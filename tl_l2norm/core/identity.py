"""Who a model is, as hashes that `tl_l2norm.models.fingerprint` takes."""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN = ""
"""Fingerprint of what can't be read, such as weights that are on the meta device."""


class Identity(NamedTuple):
    """Who a model is at one moment, each a hash or `UNKNOWN`."""

    weights: str
    """Of weights and configuration."""
    tokenizer: str
    chat_template: str
    foreign_hooks: int
    """How many hooks, beside those of the run itself, were on the model."""


def same_weights(first: str, second: str, *, same_kind: bool) -> bool:
    """Whether two known fingerprints are of the same weights; `same_kind`: both models are of one class."""
    return first == second if same_kind else first.partition("-")[0] == second.partition("-")[0]
