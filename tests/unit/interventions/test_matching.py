"""A matched control against logs made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.batch import Places, Rows
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.random_draws import sequence_key
from tl_l2norm.interventions.log import Entry, Log
from tl_l2norm.interventions.rule import Visit

PROMPT = 3
TAU = {2: 1.0}
ALIKE = ("token", "position")


def rows_of(n: int) -> Rows:
    zeros = torch.zeros(n, dtype=torch.long)
    return Rows.of(number=torch.arange(n), key=torch.arange(n), prompt_len=zeros + PROMPT, padding=zeros - PROMPT)


def visit_of(tokens: list[int], high: set[int], n: int) -> Visit:
    """`n` sequences with these response tokens, whose norm is 2 at the indices `high`, and 0.5 elsewhere."""
    rows, ids = rows_of(n), torch.tensor([tokens]).expand(n, -1)
    places = Places.of(rows, rows.position, len(tokens), tokens=ids)
    stream = torch.tensor([[2.0 if i in high else 0.5] for i in range(len(tokens))]).expand(n, -1, 1)
    return Visit(2, stream, l2_norms(stream), 1.0, places.real, places, None, None)


def log_of(tokens: list[int], fired: set[int], n: int) -> Log:
    """Of sequences of which these indices of the response were taken at layer 2."""
    log, v = Log([l2.Suppression(TAU)]), visit_of(tokens, fired, n)
    log.begin(v.places.rows)
    log.note(v.places)
    log.add(0, Entry(2, v.places, v.live, (v.norms > 1).to(torch.int8), 1.0, v.norms, v.norms, {}))
    return log


def taken(
    log: Log, tokens: list[int], high: set[int], n: int, alike: Any = ALIKE, seed: int = 0, which: Any = "matched"
) -> torch.Tensor:
    """[sequence, index] whether either side takes it, one token at a time, as in decoding."""
    x, v = l2.Suppression(TAU, which=which, match=log, alike=alike, seed=seed), visit_of(tokens, high, n)
    state = x.new_state(2, v.places.rows, 1)
    parts = []
    for i in range(len(tokens)):
        rows = v.places.rows
        here = Places.of(rows, rows.position + i, 1, tokens=v.places.tokens[:, i : i + 1])
        one = Visit(2, v.stream[:, i : i + 1], v.norms[:, i : i + 1], 1.0, here.real, here, None, None)
        parts.append(x.act(state, one).decision[:, 0] == 1)
    whole = x.act(x.new_state(2, v.places.rows, 1), v).decision == 1
    found = torch.stack(parts, dim=1)
    assert torch.equal(found, whole), "in one pass as token by token"
    return found


A, B, C = 7, 8, 9


def test_tokens_of_the_same_ids_are_taken_as_many_of_each() -> None:
    tokens = [A, B, A, B, A, B, A, B, C, C]
    hits = taken(log_of(tokens, {0, 2, 1}, 2000), tokens, {0, 2, 1}, 2000, "token")
    ids = torch.tensor(tokens)
    assert (hits[:, ids == A].sum(1) == 2).all() and (hits[:, ids == B].sum(1) == 1).all() and not hits[:, ids == C].any()
    assert not hits[:, [0, 1, 2]].any(), "those are high"
    assert hits[:, 3::2].double().mean(0)[:3].sub(1 / 3).abs().max() < 0.05, "B is as likely at each of its three places"


def test_tokens_near_the_same_positions_are_taken() -> None:
    tokens, high = [A] * 32, {1, 2, 3, 25}
    hits = taken(log_of(tokens, high, 3000), tokens, high, 3000, "position")
    counts = hits.reshape(3000, 4, 8).sum(2)
    assert (counts == torch.tensor([3, 0, 0, 1])).all()
    assert hits[:, [0, 4, 5, 6, 7]].double().mean(0).sub(3 / 5).abs().max() < 0.04, "anywhere in their eight positions"
    assert hits[:, 24:].double().mean(0)[[0, 2, 3, 4, 5, 6, 7]].sub(1 / 7).abs().max() < 0.03


def test_what_finds_no_partner_in_its_place_is_paid_later_or_never() -> None:
    first, second = [A, A, B, B, B, B, B, B], [A, B, B, B, B, B, B, B]
    log = log_of(first + second, {0, 1}, 50)
    assert (taken(log, first + second, {0, 1}, 50).sum(1) == 1).all() and taken(log, first + second, {0, 1}, 50)[:, 8].all()
    later = [*first, *second, A, A]
    hits = taken(log, later, {0, 1, 8}, 50)
    assert (hits.sum(1) == 1).all() and hits[:, 16].all(), "of those with a partner there is one, and it is paid after"


def test_high_ones_are_as_many_as_have_partners() -> None:
    """Of three high A one has a partner, the A at 6, to which that at 4 is nearest."""
    tokens, high = [A, B, A, B, A, B, A, B, *[C] * 8, A, B], {0, 2, 4, 16}
    log = log_of(tokens, high, 3000)
    for which, places in (("high", [0, 2, 4]), ("matched", [6])):
        hits = taken(log, tokens, high, 3000, which=which)
        assert (hits.sum(1) == 1).all() and hits[:, places].sum() == hits.sum()
        assert hits[:, places].double().mean(0).sub(1 / len(places)).abs().max() < 0.04
    both = [taken(log, [A, B] * 12, {0, 2, 4, 16}, 50, which=which).sum(1) for which in ("high", "matched")]
    assert torch.equal(*both), "as many in any other response"


def test_firsts_of_an_id_are_left_alone_and_partners_are_near() -> None:
    """A at 0 and B at 1 are the first; of A at 2 and 4 the partner is that at 6; the B at 3 has one 10 behind, none near."""
    tokens, high = [A, B, A, B, A, C, A, *[C] * 6, B], {0, 1, 2, 3, 4}
    log = log_of(tokens, high, 2000)
    alike = ("token", "position", "occurrence")
    for which, places in (("high", {2, 4}), ("matched", {6})):
        hits = taken(log, tokens, high, 2000, alike, which=which)
        assert (hits.sum(1) == 1).all() and set(hits.any(0).nonzero()[:, 0].tolist()) == places
    assert not taken(log, [C, B, A, B], {0, 1, 2}, 50, alike).any(), "the first A of any other response is left alone too"
    assert taken(log, tokens, high, 50, "token").sum(1).unique().tolist() == [2], "of A and B"
    with pytest.raises(InputError, match="give 'token' too"):
        l2.Suppression(TAU, which="matched", match=log, alike=("position", "occurrence"))


def test_a_type_that_is_always_high_has_no_partner() -> None:
    tokens = [A, B, A, B, A, B, A, B]
    assert not taken(log_of(tokens, {0, 2, 4, 6}, 20), tokens, {0, 2, 4, 6}, 20).any()
    assert (taken(log_of(tokens, {0, 2, 4, 6}, 20), tokens, {0, 2, 4, 6}, 20, "position").sum(1) == 4).all()


def test_responses_of_another_length_still_get_their_number() -> None:
    log = log_of([A, B] * 8, {0, 1, 10, 11}, 100)
    longer = taken(log, [A, B] * 20, {2, 3}, 100)
    assert (longer.sum(1) == 4).all() and longer[:, :24].sum() == longer.sum()
    shorter = taken(log, [A, B] * 4, {2, 3}, 100)
    assert (shorter.sum(1) == 2).all(), "of the first eight positions alone"
    log.paces = dict.fromkeys(range(100), 2.0)
    assert (taken(log, [A, B] * 4, {2, 3}, 100).sum(1) == 4).all(), "at twice the pace"


def test_draws_differ_by_seed_and_are_the_same_by_the_same() -> None:
    tokens = [A, B] * 20
    log = log_of(tokens, {4, 5, 20, 21}, 30)
    one, again, other = (taken(log, tokens, {4, 5, 20, 21}, 30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_what_alike_means_is_checked() -> None:
    log = log_of([A, B, A], {0}, 1)
    for which in ("high", "low"):
        with pytest.raises(InputError, match="alike is for match"):
            l2.Suppression(TAU, which=which, alike="token")
    with pytest.raises(InputError, match="match is for which='matched'"):
        l2.Suppression(TAU, match=log)
    assert l2.Suppression(TAU, which="matched", match=log, alike="token").alike == ("token",)
    blind = Log([l2.Suppression(TAU)])
    v = visit_of([A, A], {0}, 1)
    blind.begin(v.places.rows)
    blind.add(0, Entry(2, v.places, v.live, (v.norms > 1).to(torch.int8), 1.0, v.norms, v.norms, {}))
    with pytest.raises(InputError, match="the log doesn't know the tokens of sequence 0"):
        l2.Suppression(TAU, which="matched", match=blind, alike="token")


# On models


def prompts() -> list[list[int]]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(5, 900, (k,), generator=rng).tolist() for k in (7, 4, 9, 5)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_is_matched_by_a_log_made_by_hand(tiny: Any, batch_size: int) -> None:
    """Every response token is a candidate: what is taken are the log's ids at the log's bins."""
    options: dict[str, Any] = {"max_new_tokens": 33, "ignore_eos": True, "batch_size": batch_size, "progress": False}
    plain = l2.generate(tiny, prompts(), **options)
    log = Log([l2.Suppression({2: 0.0, 4: 0.0})])
    log.sink_ratio = plain.traces[0].provenance.sink_ratio
    zeros = torch.zeros(1, dtype=torch.long)
    for i, trace in enumerate(plain.traces):
        rows = Rows.of(number=zeros + i, key=zeros + sequence_key(0, i, 0), prompt_len=zeros + trace.prompt_len, padding=zeros)
        places = Places.of(rows, rows.position, len(trace), tokens=trace.tokens[None])
        log.begin(rows)
        log.note(places)
        live = places.eligible("decode")
        at = (places.positions - trace.prompt_len == 9) | (places.positions - trace.prompt_len == 20)
        for layer in (2, 4):
            log.add(0, Entry(layer, places, live, (live & at).to(torch.int8), 0.0, at.float(), at.float(), {}))
    # a scale of 1 changes nothing: the responses are the plain ones
    x = l2.Suppression(dict.fromkeys((2, 4), 1e9), which="matched", match=log, alike="position", scale=1.0, seed=4)
    found = l2.generate(tiny, prompts(), interventions=[x], **options)
    assert [c.tokens for c in found] == [c.tokens for c in plain]
    events = found.events()
    own = events["position"].to_numpy() - [found.traces[s].prompt_len for s in events["sequence"]]
    assert sorted(zip(events["sequence"], events["layer"], own // 8, strict=True)) == [
        (s, layer, b) for s in range(4) for layer in (2, 4) for b in (1, 2)
    ]
    again = l2.collect(tiny, found.traces, interventions=[x], progress=False)
    assert all((a.l2_norms - b.l2_norms).abs().max() < 1e-3 for a, b in zip(again, found.traces, strict=True))


@pytest.mark.parametrize(("which", "taken"), [("high", {0, 9}), ("matched", set(range(16)) - {0, 9})])
def test_a_model_is_matched_by_token_too(tiny: Any, which: Any, taken: set[int]) -> None:
    """11 12 11 12 ...: of the log's 11 and 12 either they themselves, or one other of each."""
    tokens, zeros = torch.tensor([[5, 6, 7, *[11, 12] * 8]]), torch.zeros(1, dtype=torch.long)
    (trace,) = l2.collect(tiny, [tokens[0].tolist()], prompt_lens=[3], progress=False)
    log = Log([l2.Suppression({2: 0.0})])
    log.sink_ratio = trace.provenance.sink_ratio
    rows = Rows.of(number=zeros, key=zeros + 77, prompt_len=zeros + 3, padding=zeros)
    places = Places.of(rows, rows.position, 19, tokens=tokens)
    log.begin(rows)
    log.note(places)
    at = (places.positions == 3) | (places.positions == 12)
    log.add(0, Entry(2, places, places.positions >= 3, at.to(torch.int8), 0.0, at.float(), at.float(), {}))
    tau = 0.0 if which == "high" else 1e9  # whatever is read is high, or nothing is
    x = l2.Suppression({2: tau}, which=which, match=log, alike="token", scale=0.5)
    with x.hooks(tiny, prompt_lens=[3], seeds=[77]) as seen:
        tiny(tokens)
    (again,) = l2.collect(tiny, [tokens[0].tolist()], prompt_lens=[3], seeds=[77], interventions=[x], progress=False)
    hit = seen.events()["position"].to_numpy() - 3
    assert sorted(tokens[0, hit + 3].tolist()) == [11, 12] and (which == "high" or set(hit) <= taken | {0, 9})
    changed = (again.at(2) / trace.at(2) - 1).abs() > 0.4
    assert changed.nonzero()[:, 0].tolist() == sorted(hit + 3), "collect does what hooks do"


def test_the_log_of_a_run_knows_what_was_read(tiny: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "batch_size": 3, "progress": False}
    out = l2.generate(tiny, prompts(), interventions=[l2.Suppression(dict.fromkeys((2, 4), 0.0), scale=0.9)], **options)
    sequence, position, token = out.log.read()
    for i, trace in enumerate(out.traces):
        order = position[sequence == i].argsort()
        assert position[sequence == i][order].tolist() == list(range(len(trace)))
        assert token[sequence == i][order].tolist() == trace.tokens.tolist()
