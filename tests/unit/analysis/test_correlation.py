import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from tests.planted import Array, both_modes, response
from tl_l2norm.analysis.correlation import correlation_table, pearson
from tl_l2norm.analysis.reasoning import find_reasoning_features
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.trace import Trace


class Planted:
    """Stands for chosen latents: what they sum to is a metric of the trace."""

    def total(self, trace: Trace) -> torch.Tensor:
        return trace.metrics["activation"]


def trace_of_rows(norms: Array, activation: Array, prompt: str, **fields: Any) -> Trace:
    """Norms and activations [layer, response token]."""
    behind = np.concatenate([np.full((len(activation), 1), 77.0), activation], axis=1)
    return response(norms, prompt=prompt, metrics={"activation": torch.from_numpy(behind).float()}, **fields)


def random_traces(n: int = 8, length: int = 12, layers: int = 4, seed: int = 0) -> list[Trace]:
    """Norms, activations and token types that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return [
        trace_of_rows(
            rng.normal(100, 5, (layers, length)),
            rng.exponential(size=(layers, length)).astype(np.float32),
            str(i),
            tokens=rng.integers(0, 5, length),
        )
        for i in range(n)
    ]


def table(traces: list[Trace], **options: Any) -> pd.DataFrame:
    return correlation_table(traces, Planted(), **{"quantities": ("l2_norm",), "resamples": 200, **options})


def rho(correlations: pd.DataFrame, scope: str, layer: object) -> float:
    at = correlations[(correlations["scope"] == scope) & (correlations["layer"] == layer)]
    assert len(at) == 1
    return float(at["rho"].iloc[0])


def test_over_tokens_it_is_scipys_spearman_averaged_over_prompts() -> None:
    traces = random_traces()
    correlations = table(traces)
    for layer in range(4):
        expected = [spearmanr(t.l2_norms[layer, 1:], t.metrics["activation"][layer, 1:]).statistic for t in traces]
        assert rho(correlations, "tokens", layer) == pytest.approx(np.mean(expected), abs=1e-12)
    assert rho(correlations, "tokens", "late") == pytest.approx(rho(correlations, "tokens", 3))
    assert (correlations[correlations["scope"] == "tokens"]["n"] == 8).all()


def test_partial_it_is_what_a_regression_of_the_ranks_leaves() -> None:
    traces = random_traces(seed=1)
    correlations = table(traces)
    every = np.concatenate([t.tokens[1:].numpy() for t in traces])
    for layer in range(4):
        left = []
        for t in traces:
            frequency = np.array([(every == token).sum() for token in t.tokens[1:].tolist()])
            design = np.stack([np.ones(12), np.arange(12), rankdata(frequency)], axis=1)
            sides = []
            for values in (t.l2_norms[layer, 1:], t.metrics["activation"][layer, 1:]):
                ranks = rankdata(values.numpy())
                sides.append(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0])
            left.append(np.corrcoef(*sides)[0, 1])
        assert rho(correlations, "partial", layer) == pytest.approx(np.mean(left), abs=1e-9)


def test_over_layers_it_is_the_spearman_of_the_mean_curves() -> None:
    traces = random_traces(layers=9, seed=2)
    curves = [np.mean([t_[:, 1:].mean(1).numpy() for t_ in side], axis=0) for side in
              ([t.l2_norms.double() for t in traces], [t.metrics["activation"].double() for t in traces])]  # fmt: skip
    assert rho(table(traces), "layers", "all") == pytest.approx(spearmanr(*curves).statistic, abs=1e-12)


@given(st.integers(0, 1000))
def test_pearson_is_numpys(seed: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, 3, 7))
    np.testing.assert_allclose(pearson(first, second), [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)))


def test_rho_is_the_same_after_any_monotone_map() -> None:
    traces = random_traces(seed=3)
    mapped = [
        dataclasses.replace(t, l2_norms=t.l2_norms.log(), metrics={"activation": t.metrics["activation"] ** 3}) for t in traces
    ]
    correlations, again = table(traces), table(mapped)
    at = correlations["scope"] != "layers"  # means over tokens are no ranks
    pd.testing.assert_frame_equal(correlations[at], again[at])
    turned = table([dataclasses.replace(t, l2_norms=1 / t.l2_norms) for t in traces])
    np.testing.assert_allclose(turned["rho"][at], -correlations["rho"][at])
    np.testing.assert_allclose(
        turned[turned["scope"] == "tokens"]["low"], -correlations[correlations["scope"] == "tokens"]["high"], atol=0.2
    )


def test_a_perfect_correlation_is_one() -> None:
    rng = np.random.default_rng(4)
    traces = [trace_of_rows(x := rng.random((4, 9)) + 1, 2 * x, str(i)) for i in range(8)]
    correlations = table(traces)
    np.testing.assert_allclose(correlations["rho"], 1)
    np.testing.assert_allclose(correlations["low"], 1)


def test_sinks_and_the_prompt_do_not_count() -> None:
    traces = random_traces()
    expected = table(traces)
    sunk = []
    for t in traces:
        sinks = torch.zeros(4, 14, dtype=torch.bool)
        sinks[:, 5] = True
        longer = {
            name: torch.cat([x[..., :5], torch.full((*x.shape[:-1], 1), 1e5), x[..., 5:]], dim=-1)
            for name, x in {"l2_norms": t.l2_norms, "activation": t.metrics["activation"]}.items()
        }
        sunk.append(
            dataclasses.replace(
                t,
                l2_norms=longer["l2_norms"],
                metrics={"activation": longer["activation"]},
                is_sink=sinks,
                tokens=torch.cat([t.tokens[:5], t.tokens[5:6], t.tokens[5:]]),
                segments=(*t.segments[:5], "think", *t.segments[5:]),
                str_tokens=(*t.str_tokens, "t"),
                embed_l2_norms=torch.ones(14),
            )
        )
    correlations = table(sunk)
    at = correlations["scope"] != "partial"  # there positions and frequencies do differ
    pd.testing.assert_frame_equal(correlations[at], expected[at])


def test_a_sink_at_one_layer_is_left_out_there_alone() -> None:
    traces = random_traces()
    sinks = torch.zeros(4, 13, dtype=torch.bool)
    sinks[2, 6] = True
    correlations = table([dataclasses.replace(t, is_sink=sinks) for t in traces])
    kept = torch.arange(1, 13) != 6
    expected = [spearmanr(t.l2_norms[2, 1:][kept], t.metrics["activation"][2, 1:][kept]).statistic for t in traces]
    assert rho(correlations, "tokens", 2) == pytest.approx(np.mean(expected))
    assert rho(correlations, "tokens", 1) == rho(table(traces), "tokens", 1)


def test_short_responses_say_nothing_over_tokens_but_count_over_layers() -> None:
    traces = [*random_traces(8), *[t.with_labels(prompt="x" + str(i)) for i, t in enumerate(random_traces(3, length=7))]]
    correlations = table(traces).set_index("scope")
    assert (correlations.loc["tokens", "n"] == 8).all() and correlations.loc["layers", "n"] == 11


def test_a_prompts_samples_are_averaged_first() -> None:
    traces = random_traces(9)
    merged = [*traces[:8], traces[8].with_labels(prompt="0")]
    by_trace = [spearmanr(t.l2_norms[0, 1:], t.metrics["activation"][0, 1:]).statistic for t in traces]
    expected = np.mean([(by_trace[0] + by_trace[8]) / 2, *by_trace[1:8]])
    assert rho(table(merged), "tokens", 0) == pytest.approx(expected)


def test_shared_drift_with_position_is_a_correlation_over_tokens_but_not_partial() -> None:
    rng = np.random.default_rng(7)
    drift = np.arange(16)[None]
    traces = [trace_of_rows(100 + drift + 2 * rng.random((4, 16)), drift + 2 * rng.random((4, 16)), str(i)) for i in range(16)]
    correlations = table(traces)
    assert rho(correlations, "tokens", 3) > 0.95
    assert abs(rho(correlations, "partial", 3)) < 0.2


def test_shared_dependence_on_the_frequency_of_tokens_is_not_partial_either() -> None:
    rng = np.random.default_rng(8)
    traces = []
    for i in range(16):
        ids = np.repeat([0, 1, 2, 3], [8, 4, 3, 1])
        ids = rng.permutation(ids)
        traces.append(trace_of_rows(100 - ids + rng.random((4, 16)) / 2, 9 - ids + rng.random((4, 16)) / 2, str(i), tokens=ids))
    correlations = table(traces)
    assert rho(correlations, "tokens", 3) > 0.8
    assert abs(rho(correlations, "partial", 3)) < 0.25


def test_several_quantities_stand_side_by_side() -> None:
    traces = random_traces()
    traces = [dataclasses.replace(t, metrics={**t.metrics, "hidden_entropy": -t.l2_norms}) for t in traces]
    correlations = table(traces, quantities=("l2_norm", "hidden_entropy"))
    by_name = [correlations[correlations["quantity"] == name].reset_index() for name in ("l2_norm", "hidden_entropy")]
    np.testing.assert_allclose(by_name[0]["rho"], -by_name[1]["rho"])
    assert list(correlations.columns) == ["quantity", "scope", "layer", "rho", "low", "high", "n", "seed", "model"]
    assert correlations["layer"].tolist() == ["all", "all", *[0, 1, 2, 3, "late"] * 4]


def test_what_has_no_rank_correlation_is_refused() -> None:
    traces = random_traces()
    flat = []
    for t in traces:
        norms = t.l2_norms.clone()
        norms[1:3, 1:] = 5.0
        flat.append(dataclasses.replace(t, l2_norms=norms))
    with pytest.raises(ValueError, match="l2_norm is the same at every token of layers 1-2"):
        table(flat)
    with pytest.raises(ValueError, match="'hidden_entropy' was not recorded"):
        table(traces, quantities=("hidden_entropy",))
    with pytest.raises(ValueError, match="'l2_norms' is not known.*l2_norm"):
        table(traces, quantities=("l2_norms",))
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        table(traces[:7])
    with pytest.raises(ValueError, match="which prompt it answers"):
        table([dataclasses.replace(traces[0], labels={}), *traces[1:]])
    other = dataclasses.replace(traces[0].provenance, dtype="bfloat16")
    modes = [t.with_labels(mode="direct" if i else "think") for i, t in enumerate(random_traces())]
    with pytest.raises(ValueError, match="the traces are of the modes direct, think: give those of one"):
        table(modes)
    assert len(table([t.with_labels(shuffled=True) for t in modes])), "their modes are exchanged on purpose"
    with pytest.raises(ValueError, match="not comparable"):
        table([dataclasses.replace(traces[0], provenance=other), *traces[1:]])


def test_without_a_chosen_feature_there_is_nothing_to_correlate_with() -> None:
    rng = np.random.default_rng(0)

    def make(i: int, mode: str) -> Trace:
        return response(rng.random((4, 9)) + 1, prompt=f"p{i:02}", mode=mode, acts=np.ones((9, 2)))

    think, direct = both_modes(24, make)
    features = find_reasoning_features(think, direct)
    assert len(features) == 0
    with pytest.raises(Unmeasurable, match="no reasoning feature is active in these traces"):
        correlation_table(features.held_out(think), features, quantities=("l2_norm",))


def test_prompts_that_the_features_were_chosen_on_are_refused() -> None:
    rng = np.random.default_rng(0)

    def make(i: int, mode: str) -> Trace:
        acts = rng.random((9, 2)) + (mode == "think")
        return response(rng.random((4, 9)) + 1, prompt=f"p{i:02}", mode=mode, acts=acts)

    think, direct = both_modes(24, make)
    features = find_reasoning_features(think, direct)
    with pytest.raises(ValueError, match="one that the features were chosen on"):
        correlation_table(think, features, quantities=("l2_norm",))
    correlations = correlation_table(features.held_out(think), features, quantities=("l2_norm",))
    known = correlations.set_index(["scope", "layer"])["rho"]
    assert np.isfinite(known[("tokens", 3)]) and np.isnan(known[("tokens", 2)]), "layers without an SAE"


def test_the_order_of_prompts_only_changes_the_resampling() -> None:
    traces = random_traces(seed=6)
    correlations, again = table(traces, resamples=2000), table(traces[::-1], resamples=2000)
    np.testing.assert_allclose(correlations["rho"], again["rho"])
    np.testing.assert_allclose(correlations[["low", "high"]].dropna(), again[["low", "high"]].dropna(), atol=0.06)
