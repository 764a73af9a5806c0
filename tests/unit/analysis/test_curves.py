import dataclasses

import numpy as np
import pytest
import torch

import tl_l2norm as l2
from tests.traces import trace_of
from tl_l2norm.analysis.curves import response_means
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import Trace


def response(values: list[float], prompt: str, layers: int = 4) -> Trace:
    """A response of these norms in every layer, behind a prompt that must not count."""
    return trace_of([[1e6, *values]] * layers, prompt_len=1).with_labels(prompt=prompt)


def test_the_mean_is_over_response_tokens_without_sinks() -> None:
    sinks = torch.tensor([[False, False, True, False], [False] * 4])
    trace = trace_of([[9.0, 2, 1000, 4], [9, 2, 6, 4]], prompt_len=1, is_sink=sinks)
    assert response_means(trace).tolist() == [3.0, 4.0]
    assert torch.isnan(response_means(trace_of([[9.0, 2]]))).all()


def test_the_tokens_from_which_a_response_is_chosen_begin_with_the_prompts_last() -> None:
    trace = trace_of([[9.0, 2, 6, 4]], prompt_len=2)
    assert response_means(trace, tokens="read").tolist() == [5.0]
    assert response_means(trace, tokens="chosen").tolist() == [4.0]
    alone = trace_of([[9.0, 2]], prompt_len=2)  # one token was sampled and never read back
    assert torch.isnan(response_means(alone)).all() and response_means(alone, tokens="chosen").tolist() == [2.0]


def test_summed_activations_have_curves_of_their_own() -> None:
    acts = FeatureActs.of_dense(torch.tensor([[50.0, 0], [1, 2], [0, 7]]))
    trace = dataclasses.replace(trace_of([[9.0, 2, 6], [9, 3, 7]], prompt_len=1), features={1: acts})
    curve = l2.analysis.layer_curve([trace, trace], mode="think", quantity="feature_sum")
    assert (curve.layers, curve.mean.tolist(), curve.quantity) == ((1,), [5.0], "feature_sum")
    with pytest.raises(ValueError, match="some traces have no SAE features"):
        l2.analysis.layer_curve([trace, dataclasses.replace(trace, features={})], mode="think", quantity="feature_sum")


def test_a_curve_averages_prompts_not_tokens() -> None:
    curve = l2.analysis.layer_curve([response([1.0] * 99, "long"), response([3.0], "short")], mode="think")
    assert curve.mean.tolist() == [2.0] * 4
    assert (curve.n, curve.n_tokens) == (2, 100)
    assert list(curve.to_frame().columns) == [
        *("mode", "quantity", "layer", "mean", "low", "high", "n", "n_tokens", "seed", "model")
    ]


def test_samples_of_one_prompt_are_one_prompt() -> None:
    curve = l2.analysis.layer_curve([response([1.0], "a"), response([5.0], "a"), response([4.0], "b")], mode="think")
    assert curve.mean.tolist() == [3.5] * 4
    assert curve.n == 2


@pytest.mark.parametrize(("shift", "word"), [(30.0, "are higher"), (-30.0, "are lower"), (0.0, "neither higher nor lower")])
def test_the_verdict_says_what_was_planted(shift: float, word: str) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(200, 20, size=40)
    direct = [response([float(v)], str(i)) for i, v in enumerate(base)]
    think = [response([float(v + shift + e)], str(i)) for i, (v, e) in enumerate(zip(base, rng.normal(0, 5, 40), strict=True))]
    late = l2.analysis.compare_late(think, direct)
    assert word in late.verdict
    assert late.layers == (3,)
    assert late.difference.low <= shift <= late.difference.high
    assert "(layer 3, as many tokens of each response)" in late.verdict
    everything = l2.analysis.compare_late(think, direct, match="none")
    assert "(layer 3, all tokens)" in everything.verdict and everything.difference == late.difference, "one token each"
    chosen = l2.analysis.compare_late(think, direct, tokens="chosen")
    assert "at the tokens from which the response was chosen): difference" in chosen.verdict
    assert chosen.difference.mean == 0 or abs(chosen.difference.mean) < abs(shift) + 1, "the prompt's last is a sink here"
    assert late.difference.n == 40


def test_pairing_is_by_prompt_not_by_order() -> None:
    base = [100.0, 200, 300, 400, 500, 600, 700, 800]
    direct = [response([v], str(i)) for i, v in enumerate(base)]
    think = [response([v + 1], str(i)) for i, v in enumerate(base)][::-1]
    difference = l2.analysis.compare_late(think, direct).difference
    assert (difference.mean, difference.low, difference.high) == (1.0, 1.0, 1.0)


def test_a_prompt_without_a_response_in_one_mode_is_left_out() -> None:
    think = [response([2.0], str(i)) for i in range(10)]
    direct = [response([1.0], str(i)) for i in range(9)] + [response([], "9")]
    assert l2.analysis.compare_late(think, direct).difference.n == 9


def test_few_prompts_prove_nothing() -> None:
    think, direct = ([response([v], str(i)) for i in range(7)] for v in (9.0, 1.0))
    assert "nothing can be said" in l2.analysis.compare_late(think, direct).verdict


def test_families_are_resampled_where_the_statement_is_of_families() -> None:
    """Prompts of two families that differ: sure of these, and of families like these nothing with two."""
    rng = np.random.default_rng(0)
    lifts = rng.normal(size=10)

    def of(mode: int, families: int) -> list[Trace]:
        return [
            response([100 + mode * (10 * lifts[i % families] + 0.1 * rng.normal())], str(i)).with_labels(
                family=f"f{i % families}"
            )
            for i in range(40)
        ]

    two, ten = (l2.analysis.compare_late(of(1, n), of(0, n), over="families") for n in (2, 10))
    assert two.verdict.startswith("With 2 families nothing can be said") and (two.table["n"] == 2).all()
    assert ten.difference.n == 10 and "n = 10 families" in ten.verdict
    assert ten.difference.mean == pytest.approx(10 * lifts.mean(), abs=0.1) and ten.difference.low < 0 < ten.difference.high
    with pytest.raises(ValueError, match=r'needs the label "family"'):
        l2.analysis.compare_late([response([1.0], "a")], [response([1.0], "a")], over="families")


def test_modes_with_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        l2.analysis.compare_late([response([1.0], "a")], [response([1.0], "b")])
    with pytest.raises(ValueError, match="no 'think' trace has a response"):
        l2.analysis.layer_curve([response([], "a")], mode="think")


def test_prompts_without_responses_have_no_comparison() -> None:
    bare = [trace_of([[9.0, 2]] * 4).with_labels(prompt=str(i)) for i in range(3)]
    for think, direct in ((bare, bare), (bare, [response([1.0], str(i)) for i in range(3)])):
        with pytest.raises(Unmeasurable, match="response tokens in both"):
            l2.analysis.compare_late(think, direct)
    assert l2.analysis.compare_late(bare, bare, tokens="chosen").difference.n == 3
