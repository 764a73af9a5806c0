"""What must hold where single tokens are swapped, beside a swap by plain TransformerLens hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.random_draws import hash_keys, sequence_key, uniform
from tl_l2norm.core.trace import Trace
from tl_l2norm.interventions.operators import Swap
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording.importance import SwapOne, token_importance

LAYER, PROMPT_LEN, ANSWER = 1, 5, 3
SWAP = int.from_bytes(b"SWAP")  # what keeps a swap's draws apart


def thinking(model: Any, n: int = 2) -> list[Trace]:
    """Responses whose last tokens are their answer; the one before that closes the thought."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(200, 4000, (24 - 2 * i,), generator=generator).tolist() for i in range(n)]
    segments = [("prompt",) * PROMPT_LEN + ("think",) * (len(t) - PROMPT_LEN - ANSWER) + ("answer",) * ANSWER for t in texts]
    labels = [{"prompt": str(i), "answer_at": len(t) - ANSWER} for i, t in enumerate(texts)]
    return list(l2.collect(model, texts, segments=segments, labels=labels, progress=False))


def donors(trace: Trace, key: int, seed: int) -> dict[int, int]:
    """For each position the earlier one whose direction it gets, by reservoir sampling one token at a time."""
    start, kept, k = hash_keys(SWAP, start=hash_keys(seed, torch.tensor([key]), LAYER)), None, 0
    found = {}
    for t in range(trace.prompt_len, len(trace)):
        if bool(trace.is_sink[trace.index_of(LAYER), t]):
            continue
        if kept is not None:
            found[t] = kept
        k += 1
        if float(uniform(torch.tensor([t]), start=start)) * k <= 1:
            kept = t
    return found


def by_hand(model: Any, trace: Trace, at: int, donor: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Streams after that layer as they are and swapped, and the answer's log-probability, by hooks of TransformerLens."""
    name, tokens, streams = f"blocks.{LAYER}.hook_resid_post", trace.tokens[None], []

    def swap(h: torch.Tensor, hook: Any) -> torch.Tensor:
        swapped = h.clone()
        v = h[0, donor].float()
        swapped[0, at] = v * (h[0, at].norm() / v.norm())
        streams.extend([h.clone(), swapped])
        return swapped

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, swap)])
    chosen = logits[0, :-1].double().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return streams[0], streams[1], float(chosen[-ANSWER:].sum())


def test_importance_is_that_of_a_swap_by_plain_hooks(tiny: Any) -> None:
    trace = thinking(tiny, 1)[0]
    table = token_importance(tiny, trace, layer=LAYER, seed=3, batch_size=1, progress=False)
    pairs = donors(trace, sequence_key(0, 0, 0), 3)
    assert table["position"].tolist() == [t for t in pairs if t < len(trace) - ANSWER - 1] and len(table) > 8
    with torch.no_grad():
        logits = tiny(trace.tokens[None])[0, :-1].double().log_softmax(-1)
    plain = float(logits.gather(1, trace.tokens[1:, None])[-ANSWER:].sum())
    probabilities = logits.exp()
    assert table["previous_token_id"].tolist() == trace.tokens[table["position"].to_numpy() - 1].tolist()
    ids, places = trace.tokens.tolist(), table["position"].tolist()
    assert table["second_previous_token_id"].tolist() == [ids[t - 2] for t in places]
    assert table["occurrence"].tolist() == [ids[PROMPT_LEN:t].count(ids[t]) for t in places]
    assert table["left"].tolist() == list(range(len(table)))[::-1]
    for entry in table.itertuples():
        before, after, logprob = by_hand(tiny, trace, entry.position, pairs[entry.position])
        assert entry.importance == pytest.approx(plain - logprob, abs=2e-5)
        assert entry.answer_logprob == pytest.approx(plain, abs=2e-5)
        cosine = torch.cosine_similarity(before[0, entry.position], after[0, entry.position], dim=0)
        assert entry.cosine == pytest.approx(float(cosine), abs=1e-5)
        entropy = -(probabilities * logits).sum(-1)
        assert entry.entropy == pytest.approx(float(entropy[entry.position - 1]), abs=1e-4)
        assert entry.next_entropy == pytest.approx(float(entropy[entry.position]), abs=1e-4)
        assert entry.late_norm == pytest.approx(float(trace.select("late").l2_norms[:, entry.position].mean()), rel=1e-5)


def test_the_state_is_exactly_that_of_the_swap_by_hand_and_of_suppression(tiny: Any) -> None:
    trace = thinking(tiny, 1)[0]
    backend, key = backend_of(tiny), sequence_key(0, 0, 0)
    at, donor = list(donors(trace, key, 0).items())[6]
    before, truth, _ = by_hand(tiny, trace, at, donor)

    def streams(x: Any) -> torch.Tensor:
        with backend.capture_stream(LAYER) as captured, torch.no_grad():
            hooks = x.fwd_hooks(tiny, prompt_lens=[PROMPT_LEN], seeds=[key])
            tiny.run_with_hooks(trace.tokens[None], fwd_hooks=[*hooks, (backend.resid_post(LAYER).name, keep)])
        return kept.pop() if kept else captured[0]

    kept: list[torch.Tensor] = []

    def keep(h: torch.Tensor, hook: Any) -> None:
        kept.append(h.clone())

    found = streams(SwapOne(targets=(at,), layers=LAYER))
    assert torch.equal(found[0, :at], before[0, :at]) and torch.equal(found[0, at + 1 :], before[0, at + 1 :])
    assert torch.allclose(found[0, at], truth[0, at], rtol=1e-6, atol=0)
    assert float(found[0, at].norm() / before[0, at].norm()) == pytest.approx(1, abs=1e-6)
    everywhere = streams(l2.Suppression(which="random", p=1.0, how="swap", seed=0, layers=LAYER))
    assert torch.equal(found[0, at], everywhere[0, at])


def test_what_stands_before_a_swapped_token_is_untouched_at_every_layer(tiny: Any) -> None:
    trace = thinking(tiny, 1)[0]
    at = list(donors(trace, sequence_key(0, 0, 0), 0))[6]
    swapped = l2.collect(tiny, trace, interventions=SwapOne(targets=(at,), layers=LAYER), progress=False)[0]
    assert torch.equal(swapped.l2_norms[:, :at], trace.l2_norms[:, :at])
    assert torch.equal(swapped.l2_norms[: LAYER + 1, at + 1 :], trace.l2_norms[: LAYER + 1, at + 1 :])
    assert torch.allclose(swapped.at(LAYER), trace.at(LAYER), rtol=1e-6)
    assert not torch.equal(swapped.l2_norms[LAYER + 1 :, at + 1 :], trace.l2_norms[LAYER + 1 :, at + 1 :])


def test_a_swap_that_changes_nothing_has_no_importance(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Swap.changed
    monkeypatch.setattr(Swap, "changed", lambda self, memory, visit: (visit.stream, whole(self, memory, visit)[1]))
    table = token_importance(tiny, thinking(tiny), layer=[0, LAYER], batch_size=1, progress=False)
    assert (table["importance"] == 0).all() and table["cosine"].to_numpy() == pytest.approx(1)


def test_neither_batches_nor_neighbours_matter_and_draws_are_the_seeds(tiny: Any) -> None:
    traces = thinking(tiny)
    alone = token_importance(tiny, traces, layer=[0, LAYER], batch_size=1, progress=False)
    together = token_importance(tiny, traces, layer=[0, LAYER], batch_size=7, progress=False)
    assert together["importance"].to_numpy() == pytest.approx(alone["importance"].to_numpy(), abs=2e-5)
    other = token_importance(tiny, traces, layer=LAYER, seed=1, progress=False)
    assert not torch.allclose(torch.tensor(other["cosine"]), torch.tensor(alone["cosine"][alone["layer"] == LAYER].to_numpy()))
    few = token_importance(tiny, traces, layer=LAYER, max_tokens=4, progress=False)
    assert few.groupby("sequence").size().tolist() == [4, 4]
    both = few.merge(alone[alone["layer"] == LAYER], on=["sequence", "position"], suffixes=("", "_all"))
    assert len(both) == 8 and both["importance"].to_numpy() == pytest.approx(both["importance_all"].to_numpy(), abs=2e-5)


def test_what_is_refused(tiny: Any) -> None:
    trace = thinking(tiny, 1)[0]
    with pytest.raises(ValueError, match="is the last"):
        token_importance(tiny, trace, layer=-1)
    nowhere = l2.collect(tiny, trace, progress=False)
    with pytest.raises(ValueError, match="1 responses don't say where their answer stands"):
        token_importance(tiny, nowhere)
    with pytest.raises(ValueError, match="thinks nothing"):
        token_importance(tiny, trace.with_labels(answer_at=PROMPT_LEN + 1))
    answers = thinking(tiny)
    with pytest.warns(UserWarning, match="1 of 2 responses think nothing before their answer and are left out"):
        table = token_importance(tiny, [trace.with_labels(answer_at=PROMPT_LEN + 1), answers[1]], layer=LAYER, progress=False)
    assert set(table["sequence"]) == {1}
    with pytest.raises(ValueError, match=f"the prompts 'a' and 'b' are the same {PROMPT_LEN} tokens"):
        token_importance(tiny, [trace.with_labels(prompt="a"), trace.with_labels(prompt="b")])
    with pytest.raises(ValueError, match="answer_at is 99"):
        token_importance(tiny, trace.with_labels(answer_at=99))
    with pytest.raises(ValueError, match="lack layers 0"):
        token_importance(tiny, trace.select([1, 2]), layer=0)
