"""Tokens that are like those which another run took: as many, of the same ids, at about the same positions.

Either side of a comparison: high ones, or others in their place. Where ids are to be the same, a token of the log counts only
if it has a partner, another token of its id in its sequence that didn't fire: both sides then take as many of each id. Where
positions are to be the same too, partners are no more than eight apart; where occurrence is, the first token of an id in a
response counts on neither side, for no other token of that id there is a first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_l2norm.core.batch import Rows, RowTensors
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Visit
from tl_l2norm.interventions.selectors import read_tokens, require_same_sequences

Likeness = Literal["token", "position", "occurrence"]
"""In what a matched token is like the one that it stands for."""

STUDY: tuple[Likeness, ...] = ("token", "position", "occurrence")
"""In what the tokens of the study of suppression are alike."""

NEAR = 8
"""Positions that count as the same; of an id, the farthest that partners are apart."""

_NO_TOKEN = -1


def as_likeness(alike: object) -> tuple[Likeness, ...]:
    """The names, each once.

    Raises:
        InputError: others.
    """
    names = (alike,) if isinstance(alike, str) else tuple(alike) if isinstance(alike, Sequence) else (alike,)
    if odd := [name for name in names if name not in get_args(Likeness)]:
        raise InputError(f"alike holds {', '.join(map(repr, get_args(Likeness)))} or nothing, got {odd[0]!r:.80}")
    if "occurrence" in names and "token" not in names:
        raise InputError("alike='occurrence' is for tokens of the same ids: give 'token' too")
    return tuple(dict.fromkeys(names))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wanted:
    """Of one sequence and layer."""

    kinds: NDArray[np.int64]
    """[kind] token ids of what fired."""
    fired: NDArray[np.float32]
    """[kind, bin] how many are to be taken."""
    others: NDArray[np.float32]
    """[kind, bin] how many could be."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What a log took, by sequence and layer, by token id and bin of positions where these are asked for.

    Positions are counted from the end of the prompt.
    """

    keys: Mapping[int, int]
    width: Mapping[int, int]
    """Positions of a bin, by sequence."""
    by_token: bool
    by_occurrence: bool
    """Whether a response's first token of an id is left alone."""
    wanted: Mapping[tuple[int, int], _Wanted]
    shape: tuple[int, int]
    """Kinds and bins, of the sequence that has most of each."""

    @classmethod
    def of(cls, log: Log, index: int, alike: Sequence[Likeness], *, high: bool = False) -> Plan:
        """The plan of an intervention of the log.

        Args:
            log: of another run.
            index: which intervention of it.
            alike: in what tokens are alike.
            high: whether tokens over the threshold are to be taken, or the others in their place.

        Raises:
            InputError: a log that doesn't know its tokens.
        """
        fired, read = log.fired_at(index), log.read()
        if known := set(fired[0].tolist()) - set(read[0].tolist()):
            raise InputError(
                f"alike: the log doesn't know the tokens of sequence {min(known)}: take it from generate, collect or "
                "`with x.hooks(model)`"
            )
        by_token, by_occurrence, places = "token" in alike, "occurrence" in alike, {}
        for sequence in np.unique(read[0]).tolist():
            own = read[1:, read[0] == sequence]
            own = own[:, np.argsort(own[0], kind="stable")]
            usable = own[0] >= _first(log, index, sequence)
            if by_occurrence:
                usable &= ~_is_first(own, log.prompt_lens[sequence])
            places[sequence] = _Places.of(own[:, usable], log.prompt_lens[sequence], log.paces.get(sequence, 1.0), by_token)
        width = {sequence: NEAR if "position" in alike else p.length for sequence, p in places.items()}
        wanted = {
            (s, layer): places[s].wanted(fired[2, (fired[0] == s) & (fired[1] == layer)], width[s], high, "position" in alike)
            for s, layer in np.unique(fired[:2], axis=1).T.tolist()
        }
        shape = (
            max((len(w.kinds) for w in wanted.values()), default=1),
            max((w.fired.shape[1] for w in wanted.values()), default=1),
        )
        made = {"by_token": by_token, "by_occurrence": by_occurrence, "wanted": wanted, "shape": shape}
        return cls(keys=log.keys, width=width, **made)  # type: ignore[arg-type]


def _is_first(read: NDArray[np.int64], prompt_len: int) -> NDArray[np.bool_]:
    """Whether it is the first token of its id in the response, of what was read [position or id, token] in its order."""
    own = np.where(read[0] >= prompt_len, read[1], _NO_TOKEN)
    firsts: NDArray[np.bool_] = np.isin(np.arange(len(own)), np.unique(own, return_index=True)[1]) & (own != _NO_TOKEN)
    return firsts


def _first(log: Log, index: int, sequence: int) -> int:
    """The first position at which the intervention may act."""
    where = log.interventions[index].positions
    return log.prompt_lens[sequence] if where == "decode" else 0 if where == "all" else int(where)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Places:
    """Where one sequence of a log could have been acted on."""

    positions: NDArray[np.int64]
    tokens: NDArray[np.int64]
    at: NDArray[np.int64]
    """[place] counted from the end of the prompt, at this pace."""
    pace: float

    @classmethod
    def of(cls, read: NDArray[np.int64], prompt_len: int, pace: float, by_token: bool) -> _Places:
        positions, tokens = read
        at = np.maximum(positions - prompt_len, 0)
        return cls(
            positions=positions,
            tokens=tokens if by_token else np.full_like(tokens, _NO_TOKEN),
            at=(at / pace).astype(np.int64),
            pace=pace,
        )

    @property
    def length(self) -> int:
        """In positions of the run to come."""
        return int(self.at.max(initial=0)) + 1

    def wanted(self, fired: NDArray[np.int64], width: int, high: bool, near: bool) -> _Wanted:
        """What is to be taken in place of what fired at these positions, or of it."""
        took = np.isin(self.positions, fired)
        kinds, bins = np.unique(self.tokens[took]), self.at // width
        due = np.zeros((len(kinds), int(bins.max(initial=0)) + 1), dtype=np.float32)
        candidates = np.zeros_like(due)
        for kind, token in enumerate(kinds):
            is_kind = self.tokens == token
            places = self.at[is_kind & took], self.at[is_kind & took]
            if token != _NO_TOKEN:
                places = _partners(places[0], self.at[is_kind & ~took], NEAR / self.pace if near else np.inf)
            np.add.at(due[kind], places[0 if high else 1] // width, 1)
            np.add.at(candidates[kind], bins[is_kind & (took if high else ~took)], 1)
        return _Wanted(kinds=kinds, fired=due, others=candidates / np.float32(self.pace))


def _partners(
    places: NDArray[np.int64], others: NDArray[np.int64], farthest: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a place and the nearest other one that is still free and no farther than that, the nearest pairs first."""
    if not len(others):
        return places[:0], others
    n = min(len(places), len(others))
    distance = np.abs(places[:, None] - others[None]).astype(np.float64)
    found = np.empty((2, n), dtype=np.int64)
    for i in range(n):
        first, second = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[first, second] > farthest:
            return found[0, :i], found[1, :i]
        found[:, i] = places[first], others[second]
        distance[first], distance[:, second] = np.inf, np.inf
    return found[0], found[1]


@dataclass(frozen=True, eq=False)
class Alike:
    """As many tokens of each sequence and layer as a plan says, of the ids and near the positions that it says."""

    plan: Plan
    high: bool = False
    """Whether all of them are over the threshold, or none."""

    def begin(self, layer: int, rows: Rows, draws: Int[Tensor, " batch"], skipped: int) -> Owed:
        """What is owed by sequence."""
        require_same_sequences(self.plan.keys, rows)
        n, (n_kinds, n_bins) = len(rows), self.plan.shape
        kinds = np.full((n, n_kinds), _NO_TOKEN - 1)
        fired, others = np.zeros((2, n, n_kinds, n_bins), dtype=np.float32)
        for row, number in enumerate(rows.number.tolist()):
            if own := self.plan.wanted.get((number, layer)):
                k, b = own.fired.shape
                kinds[row, :k], fired[row, :k, :b], others[row, :k, :b] = own.kinds, own.fired, own.others
        width = torch.tensor([self.plan.width.get(number, 1) for number in rows.number.tolist()])
        due = torch.from_numpy(fired).cumsum(2)
        tensors = torch.from_numpy(kinds), due, torch.from_numpy(others), width
        kinds_, due_, others_, width_ = (tensor.to(rows.device) for tensor in tensors)
        none = torch.zeros_like(due_[:, :, 0])
        met = torch.full_like(kinds_, not self.plan.by_occurrence, dtype=torch.bool)
        return Owed(kinds_, due_, others_, width_, none, none, met, torch.zeros_like(rows.prompt_len), rows.prompt_len, draws)

    def choose(self, memory: Owed, visit: Visit, able: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Token by token."""
        unknown = torch.full_like(visit.places.positions, _NO_TOKEN)
        tokens = read_tokens(visit, "alike='token'") if self.plan.by_token else unknown
        draws = uniform(visit.places.positions, start=memory.draws[:, None])
        candidates = able & ((visit.norms > visit.tau) == self.high)
        columns = zip(*(x.unbind(1) for x in (draws, candidates, visit.places.positions, tokens)), strict=True)
        return torch.stack([memory.draw(*column) for column in columns], dim=1)


@dataclass(slots=True, eq=False)
class Owed(RowTensors):
    """Selection sampling of each kind within each bin; what a bin doesn't pay is owed in the next."""

    kinds: Int[Tensor, "batch kind"]
    due: Float[Tensor, "batch kind bin"]
    """Taken by the end of a bin, if all goes well."""
    others: Float[Tensor, "batch kind bin"]
    """Candidates in a bin, as far as the log tells."""
    width: Int[Tensor, " batch"]
    taken: Float[Tensor, "batch kind"]
    seen: Float[Tensor, "batch kind"]
    """Candidates in the bin so far."""
    met: Bool[Tensor, "batch kind"]
    """Whether the response has had a token of the kind, or it needn't."""
    bin: Int[Tensor, " batch"]
    prompt_len: Int[Tensor, " batch"]
    draws: Int[Tensor, " batch"]

    def draw(
        self,
        draws: Float[Tensor, " batch"],
        candidate: Bool[Tensor, " batch"],
        positions: Int[Tensor, " batch"],
        tokens: Int[Tensor, " batch"],
    ) -> Bool[Tensor, " batch"]:
        """Take a candidate with probability owed / candidates of its kind left in the bin; all where no more are left."""
        at = (positions - self.prompt_len).clamp_min(0)
        bins = (at // self.width).clamp_max(self.due.shape[2] - 1)
        self.seen = self.seen * (bins == self.bin)[:, None]
        self.bin = bins
        is_id, in_prompt = self.kinds == tokens[:, None], (positions < self.prompt_len)[:, None]
        is_kind, self.met = is_id & (self.met | in_prompt), self.met | (is_id & ~in_prompt)
        here = bins[:, None, None].expand(-1, self.due.shape[1], 1)
        owed = ((self.due.gather(2, here)[..., 0] - self.taken) * is_kind).sum(1)
        expected = ((self.others.gather(2, here)[..., 0] - self.seen) * is_kind).sum(1)
        expected = torch.minimum(expected, (bins + 1) * self.width - at)
        hit = candidate & (draws * torch.maximum(expected, owed) < owed)
        self.taken, self.seen = self.taken + is_kind * hit[:, None], self.seen + is_kind * candidate[:, None]
        return hit
