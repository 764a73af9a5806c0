import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_l2norm as l2
from tests.planted import both_modes, response
from tl_l2norm.analysis.attribution import attribute
from tl_l2norm.analysis.curves import mode_differences
from tl_l2norm.analysis.high_norm import high_norm_tokens
from tl_l2norm.analysis.pairing import (
    MATCHES,
    Match,
    Pair,
    answer_position,
    compared,
    meant,
    mode_means,
    pair_modes,
    shuffle_modes,
    token_weights,
    weighted_mean,
)
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace


def pair(think_ids: list[int], direct_ids: list[int], think_prompt: int = 1, direct_prompt: int = 1) -> Pair:
    """Responses of these token ids; their norms are irrelevant."""
    sides = [
        response(np.ones((2, len(ids))), prompt="a", mode=mode, tokens=np.array(ids), prompt_len=p)
        for ids, mode, p in ((think_ids, "think", think_prompt), (direct_ids, "direct", direct_prompt))
    ]
    return sides[0], sides[1]


def weights(members: Pair, match: Match, tokens: str = "read") -> tuple[list[float], list[float]] | None:
    matched = token_weights(members, match, tokens)  # type: ignore[arg-type]
    return None if matched is None else (matched[0].tolist(), matched[1].tolist())


def test_without_matching_every_response_token_weighs_the_same() -> None:
    assert weights(pair([5, 6, 7, 8], [5, 6]), "none") == ([0, 0.25, 0.25, 0.25, 0.25], [0, 0.5, 0.5])
    assert weights(pair([5, 6, 7], [5]), "none", "chosen") == ([0.25] * 4, [0.5] * 2)


def test_matched_by_count_as_many_of_the_longer_are_drawn_by_seed_and_prompt() -> None:
    long, short = pair([*range(30)], [7, 8])
    draws = [token_weights((long, short), "count", seed=seed) for seed in (0, 0, 1)]
    assert all(draw is not None for draw in draws)
    for think, direct in draws:  # type: ignore[misc]
        assert direct.tolist() == [0, 0.5, 0.5] and sorted(think.tolist())[-3:] == [0, 0.5, 0.5] and think[0] == 0
    assert torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][0], draws[2][0])  # type: ignore[index]
    other = token_weights((long.with_labels(prompt="b"), short), "count")
    assert other is not None and not torch.equal(other[0], draws[0][0])  # type: ignore[index]
    flipped = token_weights((short, long), "count")
    assert flipped is not None and torch.equal(flipped[1], draws[0][0]), "whichever mode is longer"  # type: ignore[index]


def test_every_token_is_drawn_as_often() -> None:
    long, short = pair([*range(6)], [7, 8])
    drawn = [token_weights((long, short), "count", seed=seed)[0] for seed in range(600)]  # type: ignore[index]
    np.testing.assert_allclose(torch.stack(drawn).mean(0)[1:], 1 / 6, atol=0.03)


def test_as_many_are_as_many_that_are_no_sinks() -> None:
    long, short = pair([*range(30)], [7, 8, 9])
    sinks = [torch.zeros_like(trace.is_sink) for trace in (long, short)]
    sinks[0][0, 2:10], sinks[1][1, 1] = True, True  # each at one of the layers
    members = tuple(dataclasses.replace(trace, is_sink=own) for trace, own in zip((long, short), sinks, strict=True))
    for match in ("count", "length"):
        for seed in range(5):
            matched = token_weights(members, match, seed=seed)  # type: ignore[arg-type]
            assert matched is not None and matched[1].tolist() == [0, 0, 0.5, 0.5]
            assert int((matched[0] > 0).sum()) == 2 and not matched[0][2:10].any()
    assert matched[0].nonzero().flatten().tolist() == [1, 10], "the first two"
    everywhere = dataclasses.replace(short, is_sink=torch.ones_like(short.is_sink))
    assert token_weights((long, everywhere), "count") is None and token_weights((long, everywhere), "none") is not None
    pairs = {"a": [(long, everywhere), (long, short)]}
    assert not np.isnan(mode_means(pairs, lambda trace: trace.l2_norms, match="count")).any(), "another sample has tokens"


def test_by_count_no_response_is_in_two_pairs() -> None:
    """Of three samples and two direct answers two of each: the mean of three would have another distribution."""
    sides = [
        [response(np.full((1, 2), v), prompt="a", mode=mode) for v in vs]
        for mode, vs in (("think", (1.0, 2, 4)), ("direct", (8.0, 16)))
    ]
    pairs = {"a": [(t, d) for t in sides[0] for d in sides[1]]}
    means = [mode_means(pairs, lambda trace: trace.l2_norms, match=match) for match in ("count", "none")]
    assert [[float(side[0, 0]) for side in sides] for sides in means] == [[1.5, 12], [pytest.approx(7 / 3), 12]]


def test_matched_by_length_the_first_tokens_of_the_longer_are_left() -> None:
    assert weights(pair([5, 6, 7, 8], [5, 6]), "length") == ([0, 0.5, 0.5, 0, 0], [0, 0.5, 0.5])
    assert weights(pair([5], [5, 6, 7]), "length") == ([0, 1], [0, 1, 0, 0])


def test_matched_by_position_only_shared_places_in_the_sequence_are_left() -> None:
    # thinking responds at positions 3 to 6, direct at 1 to 4: 3 and 4 are shared
    matched = weights(pair([5, 6, 7, 8], [5, 6, 7, 8], think_prompt=3), "position")
    assert matched == ([0, 0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0.5, 0.5])
    assert weights(pair([5, 6], [5, 6], think_prompt=3), "position") is None, "nothing is shared"


def test_matched_by_token_each_shared_id_weighs_the_same_however_often_it_occurs() -> None:
    matched = token_weights(pair([7, 7, 7, 8, 9], [8, 7, 5]), "token")
    assert matched is not None
    torch.testing.assert_close(matched[0], torch.tensor([0, 1 / 6, 1 / 6, 1 / 6, 1 / 2, 0]))
    torch.testing.assert_close(matched[1], torch.tensor([0, 0.5, 0.5, 0]))
    assert weights(pair([7, 8], [5, 6]), "token") is None


def test_a_prompts_tokens_are_never_matched_by_type() -> None:
    members = pair([7], [8])
    assert int(members[0].tokens[0]) == int(members[1].tokens[0]), "the prompts share a token, the responses don't"
    assert weights(members, "token") is None


def test_matched_by_answer_its_first_token_alone_is_left() -> None:
    assert weights(pair([5, 6, 7], [5, 6]), "answer") == ([0, 0, 0, 1], [0, 1, 0])
    assert weights(pair([5, 6, 7], [5, 6]), "answer", "chosen") == ([0, 0, 1, 0], [1, 0, 0]), "one place earlier"


def test_the_answer_is_where_the_label_says_or_the_first_visible_token_after_the_thinking() -> None:
    trace = response(np.ones((1, 4)), prompt="a", answer_at=2)
    assert trace.segments == ("prompt", "think", "think", "answer", "answer")
    assert answer_position(trace) == 3
    blank = dataclasses.replace(trace, str_tokens=("p", "t", "t", "\n", "x"))
    assert answer_position(blank) == 4
    assert answer_position(blank.with_labels(answer_at=1)) == 1
    assert answer_position(dataclasses.replace(trace, str_tokens=("p", "t", "t", "\n", " "))) is None
    untagged = dataclasses.replace(trace, segments=("prompt",) + ("answer",) * 4)
    assert answer_position(untagged) is None, "thought without tags: its answer is somewhere"
    assert answer_position(untagged.with_labels(mode="direct")) == 1


def test_a_pair_without_an_answer_or_a_response_has_nothing_to_compare() -> None:
    think, direct = pair([5, 6], [5])
    never = dataclasses.replace(think, segments=("prompt", "think", "think"))
    assert token_weights((never, direct), "answer") is None
    assert token_weights((never, direct), "none") is not None
    empty = response(np.ones((2, 0)), prompt="a", mode="direct")
    assert all(token_weights((think, empty), match) is None for match in MATCHES)


@given(
    ids=st.tuples(*[st.lists(st.integers(0, 3), min_size=1, max_size=6) for _ in range(2)]),
    prompts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    match=st.sampled_from(MATCHES),
    tokens=st.sampled_from(["read", "chosen"]),
)
def test_weights_sum_to_one_and_lie_on_the_tokens_that_are_meant(
    ids: tuple[list[int], list[int]], prompts: tuple[int, int], match: Match, tokens: str
) -> None:
    members = pair(*ids, *prompts)
    matched = token_weights(members, match, tokens)  # type: ignore[arg-type]
    if matched is None:
        assert match in ("position", "token") or (match == "answer" and len(ids[0]) == 1), "one thinking token has no answer"
        return
    for trace, w in zip(members, matched, strict=True):
        assert float(w.sum()) == pytest.approx(1)
        assert (w >= 0).all() and not w[~meant(trace, tokens)].any()  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.sampled_from(MATCHES))
def test_a_response_matched_with_itself_has_the_same_weights(ids: list[int], match: Match) -> None:
    one = response(np.ones((2, len(ids))), prompt="a", mode="direct", tokens=np.array(ids))
    matched = token_weights((one, one), match)
    assert matched is not None and torch.equal(*matched)


def test_sinks_are_left_out_layer_by_layer() -> None:
    trace = response(np.array([[1.0, 2, 6], [1, 2, 6]]), prompt="a")
    sinks = torch.zeros(2, 4, dtype=torch.bool)
    sinks[1, 3] = True
    trace = dataclasses.replace(trace, is_sink=sinks)
    assert weighted_mean(trace, trace.l2_norms, torch.tensor([0, 0.25, 0.25, 0.5])).tolist() == [3.75, 1.5]
    only = weighted_mean(trace, trace.l2_norms, torch.tensor([0, 0, 0, 1.0]))
    assert float(only[0]) == 6 and torch.isnan(only[1]), "where sinks are all there is"


def test_a_sink_that_is_not_a_number_does_not_spoil_the_mean() -> None:
    trace = response(np.array([[1.0, np.nan, 3]]), prompt="a")
    trace = dataclasses.replace(trace, is_sink=torch.tensor([[False, False, True, False]]))
    assert weighted_mean(trace, trace.l2_norms, torch.tensor([0, 0.25, 0.5, 0.25])).tolist() == [2.0]


def made(n: int = 8, **labels: str) -> tuple[list[Trace], list[Trace]]:
    """Thinking of norm 2, direct of norm 1."""
    return both_modes(
        n, lambda i, mode: response(np.full((4, 2), 2.0 if mode == "think" else 1.0), prompt=str(i), mode=mode, labels=labels)
    )


def test_every_thinking_trace_of_a_prompt_meets_every_direct_one() -> None:
    think, direct = made()
    pairs = pair_modes([*think, think[0], think[0]], [*direct[::-1], direct[0]])
    assert list(pairs) == [str(i) for i in range(8)], "in the order of the thinking traces"
    assert [len(members) for members in pairs.values()] == [6, *[1] * 7]
    assert all(t is think[int(p)] and d is direct[int(p)] for p, members in pairs.items() for t, d in members)


def test_a_prompts_samples_count_as_one_prompt() -> None:
    think, direct = made()
    louder = dataclasses.replace(think[0], l2_norms=think[0].l2_norms * 3)
    first, second = mode_means(pair_modes([*think, louder], direct), lambda trace: trace.l2_norms)
    assert first[:, 0].tolist() == [4.0, *[2.0] * 7]
    assert second.tolist() == [[1.0] * 4] * 8


def test_where_nothing_can_be_compared_the_mean_is_missing() -> None:
    think, direct = made()
    apart = dataclasses.replace(direct[3], tokens=direct[3].tokens + 500)
    first, second = mode_means(
        pair_modes(think, [*direct[:3], apart, *direct[4:]]), lambda trace: trace.l2_norms, match="token"
    )
    assert np.isnan(first[3]).all() and np.isnan(second[3]).all()
    assert np.isfinite(np.delete(first, 3, axis=0)).all()


def test_what_can_not_be_paired_is_refused() -> None:
    think, direct = made()
    with pytest.raises(ValueError, match=r"different prompts \(1 only in one, such as '7'\)"):
        pair_modes(think, direct[:-1])
    with pytest.raises(ValueError, match="7 prompts: at least 8 are needed"):
        pair_modes(think[:7], direct[:7])
    with pytest.raises(ValueError, match=r"trace 2 doesn't say which prompt.*with_labels\(prompt="):
        pair_modes([*think[:2], dataclasses.replace(think[2], labels={}), *think[3:]], direct)
    other = dataclasses.replace(direct[0], provenance=dataclasses.replace(direct[0].provenance, model="another"))
    with pytest.raises(ValueError, match=r"another.*not comparable"):
        pair_modes(think, [other, *direct[1:]])
    with pytest.raises(ValueError, match="use trace.select"):
        pair_modes(think, [direct[0].select([0, 1]), *direct[1:]])


def test_shuffled_modes_keep_every_prompt_and_exchange_half() -> None:
    think, direct = made(9)
    first, second = shuffle_modes(think, direct, seed=3)
    assert [t.labels["prompt"] for t in first] == [t.labels["prompt"] for t in second] == [str(i) for i in range(9)]
    swapped = [t.labels["mode"] == "direct" for t in first]
    assert sum(swapped) == 4 and [t.labels["mode"] == "think" for t in second] == swapped
    assert {id(t.l2_norms) for t in (*first, *second)} == {id(t.l2_norms) for t in (*think, *direct)}


def test_what_is_exchanged_depends_on_the_seed_alone() -> None:
    think, direct = made(16)
    draws = [tuple(t.labels["mode"] for t in shuffle_modes(think, direct, seed=seed)[0]) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_a_prompts_samples_are_exchanged_together() -> None:
    think, direct = made()
    first, second = shuffle_modes([*think, *think], direct)
    for prompt in map(str, range(8)):
        sizes = [sum(t.labels["prompt"] == prompt for t in side) for side in (first, second)]
        modes = [{t.labels["mode"] for t in side if t.labels["prompt"] == prompt} for side in (first, second)]
        assert (sizes, modes) in (([2, 1], [{"think"}, {"direct"}]), ([1, 2], [{"direct"}, {"think"}]))


def two_modes() -> dict[str, Callable[[Sequence[Trace], Sequence[Trace]], object]]:
    return {
        "compare_late": l2.analysis.compare_late,
        "mode_differences": mode_differences,
        "attribute": attribute,
        "dynamics": l2.analysis.dynamics,
        "high_norm_tokens": high_norm_tokens,
        "level_trend": level_trend,
        "shuffle_modes": shuffle_modes,
    }


@pytest.mark.parametrize("name", two_modes())
def test_traces_that_say_that_they_are_of_the_other_mode_are_refused(name: str) -> None:
    call = two_modes()[name]
    think, direct = made(8)
    for sides in ((direct, think), (think, think), ([*think, *direct], direct), ([*think[1:], direct[0]], direct)):
        with pytest.raises(ValueError, match="says by its label that its mode is"):
            call(*sides)


def test_traces_that_dont_say_their_mode_are_what_they_are_given_as() -> None:
    think, direct = ([dataclasses.replace(t, labels={"prompt": t.labels["prompt"]}) for t in side] for side in made(8))
    one, other = l2.analysis.compare_late(think, direct).difference, l2.analysis.compare_late(direct, think).difference
    assert one.mean == -other.mean != 0
    renamed = [t.with_labels(mode="cot") for t in think]
    assert l2.analysis.compare_late(renamed, direct).difference.mean == one.mean, "a word of the user's own says nothing"


def test_shuffled_modes_are_compared_as_they_are_meant() -> None:
    pair = shuffle_modes(*made(8), seed=1)
    assert all(trace.labels["shuffled"] is True for side in pair for trace in side)
    assert l2.analysis.compare_late(*pair).difference.n == 8
    assert list(pair_modes(*pair)) == [str(i) for i in range(8)]


def test_a_curve_is_of_the_mode_that_its_traces_say() -> None:
    think, direct = made(8)
    for traces, mode in ((think, "direct"), (direct, "think"), ([*direct, *think], "direct")):
        with pytest.raises(ValueError, match="says by its label that its mode is"):
            l2.analysis.layer_curve(traces, mode=mode)
    assert (
        l2.analysis.layer_curve(think, mode="think").n == l2.analysis.layer_curve([*think, *direct], mode="suppressed").n == 8
    )


def test_one_prompt_under_two_labels_is_refused() -> None:
    """Twelve problems three times would be 36."""
    think, direct = both_modes(12, lambda i, mode: response(np.ones((4, 3)), prompt=str(i), mode=mode, prompt_len=5))
    again = [[*traces, traces[3].with_labels(prompt="again")] for traces in (think, direct)]
    for compare in (l2.analysis.compare_late, mode_differences, attribute):
        compare(think, direct)
        with pytest.raises(InputError, match="the prompts '3' and 'again' are the same 5 tokens"):
            compare(*again)
    unnamed = [[dataclasses.replace(t, labels={}) for t in (*traces, traces[0])] for traces in (think, direct)]
    assert l2.analysis.compare_late(*unnamed).difference.n == 12, "samples of one prompt, without labels"


def test_a_prompt_of_one_token_and_one_without_a_response_may_be_any_number_of_times() -> None:
    begun = [response(np.ones((4, 3)), prompt="a").with_labels(prompt=str(i)) for i in range(8)]
    bare = [response(np.ones((4, 0)), prompt="a", prompt_len=5).with_labels(prompt=str(i)) for i in range(8)]
    for traces in (begun, bare):
        assert len(pair_modes(traces, [t.with_labels(mode="direct") for t in traces])) == 8


def test_of_a_response_with_tags_the_thought_alone_is_thinking() -> None:
    trace = response(np.ones((1, 4)), prompt="a", answer_at=2)
    assert compared(trace, "think").tolist() == [False, True, True, False, False]
    assert compared(trace, "think", "chosen").tolist() == [True, True, False, False, False]
    whole = [False, True, True, True, True]
    assert compared(trace.with_labels(mode="direct"), "think").tolist() == whole, "its own label says so"
    assert compared(dataclasses.replace(trace, labels={}), "direct").tolist() == whole
    assert compared(dataclasses.replace(trace, labels={}), "think").tolist() == [False, True, True, False, False]
    untagged = dataclasses.replace(trace, segments=("prompt",) + ("answer",) * 4)
    assert compared(untagged, "think").tolist() == whole


def test_an_infinite_value_is_refused_and_a_mean_of_equal_ones_is_exact() -> None:
    trace = response(np.full((2, 41), 57.3), prompt="a")
    assert (weighted_mean(trace, trace.l2_norms, meant(trace).float()) == torch.tensor(57.3)).all()
    norms = trace.l2_norms.clone()
    norms[1, 5] = torch.inf
    with pytest.raises(InputError, match="is infinite: the model overflowed"):
        weighted_mean(trace, norms, meant(trace).float())
    is_sink = trace.is_sink.clone()
    is_sink[:, 5] = True
    silent = dataclasses.replace(trace, is_sink=is_sink)
    assert weighted_mean(silent, norms, meant(trace).float()).isfinite().all(), "at a sink it does no harm"
