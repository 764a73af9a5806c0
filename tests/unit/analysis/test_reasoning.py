import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.planted import Array, both_modes, response
from tests.worlds import World
from tl_l2norm.analysis import reasoning
from tl_l2norm.analysis.activations import activation_means, paired_effect
from tl_l2norm.analysis.bound import bound_control, bound_points, bound_table
from tl_l2norm.analysis.latents import top_tokens
from tl_l2norm.analysis.link import feature_link
from tl_l2norm.analysis.pairing import pair_modes
from tl_l2norm.analysis.reasoning import (
    MIN_ACTIVE,
    ReasoningFeatures,
    find_reasoning_features,
)
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import Trace

LATENTS = 6
Acts = Callable[[int, str], Array]


def traces_of(acts: Acts, n: int = 24) -> tuple[list[Trace], list[Trace]]:
    """Responses of 3 tokens with the same activations [latent] at each."""

    def make(i: int, mode: str) -> Trace:
        return response(np.ones((4, 3)), prompt=f"p{i:02}", mode=mode, acts=np.tile(acts(i, mode), (3, 1)))

    return both_modes(n, make)


def planted(i: int, mode: str) -> Array:
    """Latent 2 fires more in thinking, 4 less; 0 fires the same, 1 varies, 3 is rare, 5 is dead."""
    rng = np.random.default_rng([i, mode == "think"])
    thinking = mode == "think"
    return np.array([1.0, rng.random(), 2.0 * thinking + rng.random(), float(i == 0), 2.0 * (not thinking) + rng.random(), 0])


def test_what_fires_more_in_thinking_is_found_and_nothing_else() -> None:
    features = find_reasoning_features(*traces_of(planted))
    assert dict(features.latents) == {3: (2,)} and len(features) == 1
    table = features.table.set_index("latent")
    assert list(table.index) == [0, 1, 2, 4], f"latents active on fewer than {MIN_ACTIVE} prompts can't be tested"
    assert table["chosen"].tolist() == [False, False, True, False]
    assert table.loc[2, "think"] > 2 > 1 > table.loc[2, "direct"] > 0
    assert table.loc[4, "p"] > 0.99 and table.loc[0, "p"] == 1 and table.loc[0, "effect"] == 0
    assert (table["n"] == 12).all()
    assert repr(features) == "ReasoningFeatures(1 of 4 tested latents, in 1 of 1 layers, chosen on 12 prompts)"


def test_a_latent_that_only_direct_answers_use_is_tested_too() -> None:
    """Otherwise the tests would be chosen by their outcome, and the false-discovery rate would not be one."""
    features = find_reasoning_features(*traces_of(lambda i, mode: np.array([1.0, float(mode == "direct")])))
    assert features.table["latent"].tolist() == [0, 1]


def test_p_values_are_scipys_one_latent_at_a_time_and_q_values_are_worked_out_by_hand() -> None:
    rng = np.random.default_rng(5)
    shift = np.array([0, 0, 0.3, 0.6, 0.9, 0])
    values = {
        (i, mode): rng.exponential(size=LATENTS) + shift * (mode == "think") for i in range(24) for mode in ("think", "direct")
    }
    think, direct = traces_of(lambda i, mode: values[i, mode])
    features = find_reasoning_features(think, direct, seed=1)
    half = [i for i in range(24) if f"p{i:02}" in features.chosen_on]
    differences = np.array([values[i, "think"] - values[i, "direct"] for i in half])
    differences = differences.astype(np.float32).astype(np.float64)
    table = features.table
    for latent, entry in table.set_index("latent").iterrows():
        x = differences[:, int(str(latent))]
        expected = stats.wilcoxon(x, alternative="greater", correction=True, method="approx").pvalue
        assert entry["p"] == pytest.approx(expected, abs=1e-9)
        assert entry["difference"] == pytest.approx(x.mean(), abs=1e-5)
        assert entry["effect"] == pytest.approx(x.mean() / x.std(ddof=1), abs=1e-5)
    order = np.argsort(table["p"].to_numpy())
    running, q = 1.0, np.empty(LATENTS)
    for rank in range(LATENTS, 0, -1):  # Benjamini and Hochberg (1995): from the largest p down
        running = min(running, table["p"].iloc[order[rank - 1]] * LATENTS / rank)
        q[order[rank - 1]] = running
    np.testing.assert_allclose(table["q"], q)
    assert 0 < table["chosen"].sum() < LATENTS
    assert (table["chosen"] == ((q <= 0.05) & (table["effect"] >= 0.2))).all()


def test_an_effect_that_is_sure_but_tiny_is_not_chosen() -> None:
    """Ties make a latent significant that hardly differs on average."""

    def acts(i: int, mode: str) -> Array:
        return np.array([1 + (mode == "think") * (0.01 if i else -5.0) + 5.0])

    think, direct = traces_of(acts)
    everything = [f"p{i:02}" for i in range(24)]
    entry = find_reasoning_features(think, direct, choose_on=everything).table.iloc[0]
    assert entry["q"] < 0.05 and entry["effect"] < 0.2 and not entry["chosen"]


def test_the_largest_effect_comes_first() -> None:
    scale = np.array([1.0, 4.0, 2.0])

    def acts(i: int, mode: str) -> Array:
        return np.random.default_rng([i, mode == "think"]).random(3) + scale * (mode == "think")

    assert find_reasoning_features(*traces_of(acts)).latents[3] == (1, 2, 0)


def test_the_halves_are_disjoint_and_depend_on_the_seed_alone() -> None:
    think, direct = traces_of(planted, n=25)
    features = find_reasoning_features(think, direct, seed=4)
    held_out = {t.labels["prompt"] for t in features.held_out(think)}
    assert len(features.chosen_on) == 12 and len(held_out) == 13
    assert not held_out & features.chosen_on and held_out | features.chosen_on == {f"p{i:02}" for i in range(25)}
    assert find_reasoning_features(think[::-1], direct, seed=4).chosen_on == features.chosen_on, "not on the order of traces"
    other = traces_of(lambda i, mode: np.ones(2), n=25)
    assert find_reasoning_features(*other, seed=4).chosen_on == features.chosen_on, "nor on what is in them"
    assert find_reasoning_features(think, direct, seed=5).chosen_on != features.chosen_on


def test_only_the_choosing_half_is_looked_at() -> None:
    features = find_reasoning_features(*traces_of(planted))
    flipped = traces_of(lambda i, m: planted(i, m) if f"p{i:02}" in features.chosen_on else planted(i, m) * 100 + 7)
    again = find_reasoning_features(*flipped)
    assert features.table.equals(again.table)


def test_as_many_as_asked_are_taken_for_a_control() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct, n_latents={3: 2})
    assert features.latents[3] == (2, 1), "the least p, significant or not"
    assert features.table["chosen"].sum() == 2
    assert find_reasoning_features(think, direct, n_latents={}).latents == {3: ()}


def test_on_other_prompts_a_feature_replicates_and_chance_does_not() -> None:
    rng = np.random.default_rng(0)
    noise = {(i, mode): rng.random(3) for i in range(40) for mode in ("think", "direct")}

    def acts(i: int, mode: str) -> Array:
        return noise[i, mode] + np.array([2.0, 0, 0]) * (mode == "think")

    think, direct = traces_of(acts, n=40)
    features = find_reasoning_features(think, direct, n_latents={3: 3})
    table = features.evaluate(features.held_out(think), features.held_out(direct)).set_index("latent")
    assert table["replicated"].to_dict() == {0: True, 1: False, 2: False}
    assert table.loc[0, "low"] < 2 < table.loc[0, "high"] and (table["n"] == 20).all()
    held = [i for i in range(40) if f"p{i:02}" not in features.chosen_on]
    expected = np.mean([acts(i, "think") - acts(i, "direct") for i in held], axis=0)
    np.testing.assert_allclose(table["difference"].loc[[0, 1, 2]], expected, atol=1e-5)


def test_prompts_without_tokens_at_a_layer_are_no_prompts_to_replicate_on() -> None:
    """Of 8 held-out prompts one is an attention sink throughout."""
    think, direct = World(n=28, latents=60, reasoning=6.0).make(1)
    features = find_reasoning_features(think, direct, choose_on=[str(t.labels["prompt"]) for t in think[:20]])
    assert len(features) > 0 and (features.evaluate(think[20:], direct[20:], resamples=50)["n"] == 8).all()
    silent = dataclasses.replace(think[-1], is_sink=torch.ones_like(think[-1].is_sink))
    with pytest.raises(Unmeasurable, match=r"7 prompts with tokens to compare at layer 3 \(match='count'\): at least 8"):
        features.evaluate([*think[20:-1], silent], direct[20:])


def test_prompts_that_they_were_chosen_on_are_refused() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct)
    seen = next(t for t in think if t.labels["prompt"] in features.chosen_on)
    with pytest.raises(ValueError, match="one that the features were chosen on"):
        features.total(seen)
    with pytest.raises(ValueError, match="one that the features were chosen on"):
        features.evaluate(think, direct)
    with pytest.raises(ValueError, match="one that the features were chosen on"):
        features.evaluate(features.held_out(think), [*features.held_out(direct), direct[think.index(seen)]])


def test_a_trace_that_does_not_say_its_prompt_is_refused() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct)
    with pytest.raises(InputError, match="doesn't say which prompt it answers.*labels="):
        features.total(dataclasses.replace(features.held_out(think)[0], labels={}))


def test_the_sum_over_the_latents_is_that_of_a_dense_matrix() -> None:
    think, direct = traces_of(lambda i, mode: np.random.default_rng([i, mode == "think"]).random(LATENTS))
    features = find_reasoning_features(think, direct, n_latents={3: 2})
    trace = features.held_out(think)[0]
    total = features.total(trace)
    assert torch.isnan(total[:3]).all(), "layers without an SAE"
    torch.testing.assert_close(total[3], trace.features[3].dense()[:, list(features.latents[3])].sum(1))


def test_features_of_another_sae_are_refused() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct)
    trace = features.held_out(think)[0]
    other = dataclasses.replace(trace, features={3: dataclasses.replace(trace.features[3], sae="another")})
    with pytest.raises(ValueError, match="found with by hand, the trace has those of another"):
        features.total(other)
    with pytest.raises(ValueError, match="no SAE features at layer 3"):
        features.total(dataclasses.replace(trace, features={}))
    assert features.total(dataclasses.replace(trace, features={}).select([0])).isnan().all(), "a layer that it was not asked at"
    with pytest.raises(ValueError, match="trace 1 has features of other SAEs"):
        find_reasoning_features([think[0], dataclasses.replace(think[1], features=other.features), *think[2:]], direct)
    bare = [[dataclasses.replace(t, features={}) for t in traces] for traces in (think, direct)]
    with pytest.raises(ValueError, match="the traces have no SAE features"):
        find_reasoning_features(*bare)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="15 prompts: at least 16 are needed"):
        find_reasoning_features(*traces_of(planted, n=15))
    think, direct = traces_of(planted)
    with pytest.raises(ValueError, match="7 prompts to choose features on"):
        find_reasoning_features(think, direct, choose_on=[f"p{i:02}" for i in range(7)])
    with pytest.raises(ValueError, match="choose_on has prompts that the traces lack, such as 'nowhere'"):
        find_reasoning_features(think, direct, choose_on=["nowhere", *(f"p{i:02}" for i in range(9))])
    with pytest.raises(ValueError, match="0 prompts to choose features on with tokens to compare"):
        apart = [dataclasses.replace(t, tokens=t.tokens + 100) for t in direct]
        find_reasoning_features(think, apart, match="token")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latents": {3: -1}}, r"n_latents\[3\] must be at least 0, got -1"),
        ({"n_latents": {3: True}}, r"n_latents\[3\] must be an integer"),
        ({"choose_on": "p01"}, "choose_on must be a list of the prompts to choose on, got 'p01'"),
        ({"choose_on": {"p01": 1}}, "choose_on must be a list of the prompts"),
        ({"fdr": 2.0}, "fdr must be between 0 and 1, got 2"),
        ({"fdr": np.nan}, "fdr must be between 0 and 1, got nan"),
        ({"fdr": -1.0}, "fdr must be between 0 and 1, got -1"),
        ({"min_effect": np.nan}, "min_effect must be finite, got nan"),
    ],
)
def test_arguments_that_say_nothing_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_reasoning_features(*traces_of(planted), **options)


def test_arguments_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match="n_latents must say how many of each layer, such as {7: 20}, got 5"):
        reasoning._counts(5)
    with pytest.raises(InputError, match="choose_on must be a list of the prompts to choose on, got 5"):
        reasoning._named(5, [])
    for odd in (5, None, {3: (1, 2)}):
        with pytest.raises(InputError, match="features must be what find_reasoning_features"):
            reasoning.check_features(odd)


def test_latents_that_there_are_not_are_refused() -> None:
    features = find_reasoning_features(*traces_of(planted))
    with pytest.raises(InputError, match=r"latents\[3\] must be at least 0, got -2"):
        dataclasses.replace(features, latents={3: (1, -2)})
    trace = features.held_out(traces_of(planted)[0])[0]
    with pytest.raises(InputError, match="layer 3: there is no latent 99, the trace's SAE has 6"):
        dataclasses.replace(features, latents={3: (1, 99)}).total(trace)
    with pytest.raises(InputError, match="the features are of another, the trace is of by hand"):
        dataclasses.replace(features, model="another").total(trace)


def test_layers_that_were_not_recorded_are_named() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct)
    fewer = [[t.select([0, 1]) for t in features.held_out(traces)] for traces in (think, direct)]
    with pytest.raises(InputError, match="the features are of layers 3 too, which were not recorded: the traces have layers 0"):
        features.evaluate(*fewer)
    with pytest.raises(InputError, match="the features are of layers 3 too, which were not recorded"):
        bound_control(*fewer, features)


def test_a_norm_that_is_nan_is_named_and_is_no_lack_of_tokens() -> None:
    think, direct = World(n=28, latents=60, reasoning=6.0).make(1)
    features = find_reasoning_features(think, direct, choose_on=[str(t.labels["prompt"]) for t in think[:20]])
    norms = think[-1].l2_norms.clone()
    norms[3, -1] = torch.nan
    with pytest.raises(InputError, match="a norm of Trace.*, number 7, is NaN .layer 3, position "):
        feature_link([*think[20:-1], dataclasses.replace(think[-1], l2_norms=norms)], features)


def test_links_of_no_quantity_and_a_bound_of_two_models_are_refused() -> None:
    think, direct = traces_of(planted)
    features = find_reasoning_features(think, direct)
    with pytest.raises(InputError, match="quantities is empty"):
        feature_link(features.held_out(think), features, quantities=[])
    points = bound_points(features.held_out(think), features.held_out(direct), features)
    both = pd.concat([points, points.assign(model="another", prompt=points["prompt"] + "'")])
    with pytest.raises(InputError, match="the points are of the models another, by hand: give those of one at a time"):
        bound_table(both)


def test_to_find_none_is_a_result() -> None:
    features = find_reasoning_features(*traces_of(lambda i, mode: np.ones(4)))
    assert features.latents == {3: ()} and len(features) == 0
    assert repr(features) == "ReasoningFeatures(0 of 4 tested latents, in 0 of 1 layers, chosen on 12 prompts)"
    dead = find_reasoning_features(*traces_of(lambda i, mode: np.zeros(4)))
    assert len(dead) == 0 and dead.table.empty
    assert repr(dead) == "ReasoningFeatures(0 of 0 tested latents, in 0 of 1 layers, chosen on 12 prompts)"


def test_the_mean_activation_is_over_response_tokens_that_are_no_sinks() -> None:
    acts = np.array([[1.0, 0], [3, 0], [50, 2]])

    def make(i: int, mode: str) -> Trace:
        trace = response(np.ones((4, 3)), prompt=str(i), mode=mode, acts=acts)
        sinks = torch.zeros(4, 4, dtype=torch.bool)
        sinks[3, 3] = True
        loud = FeatureActs.of_dense(torch.cat([torch.full((1, 2), 900.0), torch.tensor(acts).float()]), sae="by hand")
        return dataclasses.replace(trace, is_sink=sinks, features={3: loud})

    first, second = activation_means(pair_modes(*both_modes(8, make)), 3)
    assert first.tolist() == second.tolist() == [[2.0, 0.0]] * 8


def test_matched_by_length_a_latent_of_late_tokens_is_not_found() -> None:
    """Latent 0 fires from the third token on, in both modes: only longer responses have it."""

    def make(i: int, mode: str) -> Trace:
        n = 6 if mode == "think" else 2
        acts = np.stack([np.arange(n) >= 2, np.ones(n)], axis=1) * (1 + np.random.default_rng(i).random())
        return response(np.ones((4, n)), prompt=f"p{i:02}", mode=mode, acts=acts)

    think, direct = both_modes(24, make)
    assert find_reasoning_features(think, direct).latents == {3: (0,)}
    assert find_reasoning_features(think, direct, match="length").latents == {3: ()}


def test_the_paired_effect_by_hand() -> None:
    differences = np.array([[1.0, 0, 2, np.nan], [3, 0, 2, 1], [5, 0, 2, 3]])
    assert paired_effect(differences).tolist() == [1.5, 0.0, np.inf, pytest.approx(2**0.5)]


def test_top_tokens_by_hand() -> None:
    acts = [[[0.0, 9], [5, 0], [1, 0], [8, 0]], [[7.0, 0], [0, 0], [2, 0], [0, 0]]]
    traces = []
    for i, dense in enumerate(acts):
        trace = response(np.ones((4, 3)), prompt=f"p{i}", mode=("think", "direct")[i])
        features = {3: FeatureActs.of_dense(torch.tensor(dense), sae="by hand")}
        traces.append(dataclasses.replace(trace, features=features, str_tokens=tuple("abcd") if i == 0 else tuple("wxyz")))
    sinks = torch.zeros(4, 4, dtype=torch.bool)
    sinks[3, 3] = True
    traces[0] = dataclasses.replace(traces[0], is_sink=sinks)
    strongest = top_tokens(traces, 3, 0, k=3, context=1)
    assert strongest["activation"].tolist() == [7.0, 5.0, 2.0], "8 is at a sink"
    assert strongest["token"].tolist() == ["w", "b", "y"]
    assert strongest["before"].tolist() == ["", "a", "x"] and strongest["after"].tolist() == ["x", "c", "z"]
    assert strongest["prompt"].tolist() == ["p1", "p0", "p1"] and strongest["mode"].tolist() == ["direct", "think", "direct"]
    assert strongest["position"].tolist() == [0, 1, 2] and strongest["sequence"].tolist() == [1, 0, 1]
    assert len(top_tokens(traces, 3, 0, k=99)) == 4, "no more than it is active on"
    assert top_tokens(traces, 3, 1)["activation"].tolist() == [9.0]
    with pytest.raises(ValueError, match=r"trace 0 has no SAE features at layer 1: it has \[3\]"):
        top_tokens(traces, 1, 0)
    for options, why in (
        ({"layer": 3, "latent": 60}, "latent 60 is outside the SAE of layer 3: it has latents 0 to 1"),
        ({"layer": 3, "latent": -1}, "latent must be at least 0, got -1"),
        ({"layer": 3, "latent": 0, "k": -1}, "k must be at least 1, got -1"),
        ({"layer": 3, "latent": 0, "context": -2}, "context must be at least 0"),
    ):
        with pytest.raises(InputError, match=why):
            top_tokens(traces, **options)  # type: ignore[arg-type]


def test_several_layers_are_corrected_each_by_itself() -> None:
    def make(i: int, mode: str) -> Trace:
        rng = np.random.default_rng([i, mode == "think"])
        trace = response(np.ones((4, 2)), prompt=f"p{i:02}", mode=mode, acts=rng.random((2, 3)) + (mode == "think"))
        silent = FeatureActs.of_dense(
            torch.from_numpy(np.concatenate([np.zeros((1, 5)), rng.random((2, 5))])).float(), sae="low"
        )
        return dataclasses.replace(trace, features={3: trace.features[3], 1: silent})

    features = find_reasoning_features(*both_modes(24, make))
    assert list(features.latents) == [1, 3] and features.latents[1] == () and sorted(features.latents[3]) == [0, 1, 2]
    assert dict(features.saes) == {1: "low", 3: "by hand"}
    assert features.table.groupby("layer").size().to_dict() == {1: 5, 3: 3}
    top = features.table[features.table["layer"] == 3]
    assert top["q"].max() == pytest.approx(top["p"].max()), "the largest p of a layer is its own q"


def test_the_value_is_frozen() -> None:
    features = find_reasoning_features(*traces_of(planted))
    assert isinstance(features, ReasoningFeatures)
    with pytest.raises(dataclasses.FrozenInstanceError):
        features.seed = 3  # type: ignore[misc]
