import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from scipy.sparse import csr_array
from scipy.stats import linregress
from scipy.stats import t as t_distribution

from tests.planted import Array, both_modes, response
from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.analysis.bound import bound_control, bound_points, bound_table
from tl_l2norm.analysis.curves import layer_curve, mode_differences
from tl_l2norm.analysis.directions import coactive_cosine, decoder_cosine, random_cosine, random_cosine_spread
from tl_l2norm.analysis.random_sets import random_sets
from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features
from tl_l2norm.analysis.theory import BOUNDS, assumption_table, error_against_gap, part_cosines, top_overlap
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.core.trace import Trace


def chosen(*latents: int, layer: int = 3, chosen_on: tuple[str, ...] = ()) -> ReasoningFeatures:
    """These latents, as if they had been found."""
    return ReasoningFeatures(
        latents={layer: latents},
        table=pd.DataFrame(),
        chosen_on=frozenset(chosen_on),
        saes={layer: "by hand"},
        match="none",
        tokens="read",
        seed=0,
        model="by hand",
    )


def bound_traces(direct_norm: Array, think_norm: Array, lift: Array) -> tuple[list[Trace], list[Trace]]:
    """Two tokens each; latent 0 is `lift` more active in thinking, latent 1 is noise that must not count."""

    def make(i: int, mode: str) -> Trace:
        thinking = mode == "think"
        norms = np.full((4, 2), (think_norm if thinking else direct_norm)[i])
        acts = np.array([[1 + lift[i] * thinking, 50.0 * thinking]] * 2)
        return response(norms, prompt=str(i), mode=mode, acts=acts)

    return both_modes(len(lift), make)


def test_where_left_is_a_multiple_of_right_the_constants_are_that_and_r2_is_one() -> None:
    direct = np.linspace(10, 20, 12)
    think = direct + np.linspace(1, 5, 12)
    right = np.sqrt(think**2 - direct**2)
    points = bound_points(*bound_traces(direct, think, 0.25 * right), chosen(0))
    np.testing.assert_allclose(points["right"], right, rtol=1e-5)
    np.testing.assert_allclose(points["left"], 0.25 * right, rtol=1e-5)
    entry = bound_table(points).iloc[0]
    assert entry["c1"] == pytest.approx(0.25, rel=1e-4) and entry["c2"] == pytest.approx(0.25, rel=1e-4)
    assert entry["r2"] == pytest.approx(1) and entry["r2_low"] == pytest.approx(1)
    assert entry["slope"] == pytest.approx(1, abs=1e-4) and entry["spread"] == pytest.approx(1, abs=1e-4)
    assert entry["spread_right"] == pytest.approx(np.divide(*np.quantile(right, (0.95, 0.05))), rel=1e-5)
    assert entry["p"] == pytest.approx(2 * 0.9**12), "12 prompts can't show that the premise holds in over 90%"
    assert (entry["layer"], entry["n"], entry["n_premise"], entry["premise"]) == (3, 12, 12, 1.0)


def test_norms_are_squared_before_they_are_averaged() -> None:
    def make(i: int, mode: str) -> Trace:
        norms = np.array([[3.0, 5.0]] * 4) if mode == "think" else np.array([[4.0, 4.0]] * 4)
        return response(norms, prompt=str(i), mode=mode, acts=np.ones((2, 1)))

    points = bound_points(*both_modes(8, make), chosen(0))
    np.testing.assert_allclose(points["right"], 1.0, rtol=1e-5)  # 34 / 2 - 16; equal mean norms would give 0


def test_given_tokens_both_sides_are_those_of_equal_types() -> None:
    """Squared norms and activations are sums of what prompts, types and places give: those of the prompts come back."""
    rng = np.random.default_rng(3)
    gives, lifts = {"think": rng.uniform(300, 500, 12), "direct": rng.uniform(100, 200, 12)}, rng.uniform(3, 5, 12)
    types = np.array([0.0, 40.0, 90.0, 5.0])

    def make(i: int, mode: str) -> Trace:
        ids = rng.choice(4, size=20, p=[0.1, 0.2, 0.1 + 0.04 * i, 0.6 - 0.04 * i])
        squares = gives[mode][i] + types[ids] + np.arange(20)
        acts = lifts[i] * (mode == "think") + 0.1 * types[ids] + 0.02 * np.arange(20) + 1
        return response(np.sqrt(np.tile(squares, (4, 1))), prompt=str(i), mode=mode, tokens=ids, acts=acts[:, None])

    traces = both_modes(12, make)
    raw, points = (bound_points(*traces, chosen(0), given=given) for given in ("nothing", "tokens"))  # type: ignore[arg-type]
    for name, truth in (("left", lifts), ("right", gives["think"] - gives["direct"])):
        sides = [np.asarray(own[name] ** (2 if name == "right" else 1)) for own in (raw, points)]
        off = [float(np.std(side - truth)) for side in sides]
        assert off[1] < 0.01 * truth.std() < 0.1 * off[0], "but for a constant: the modes' own mean over types"
    alone = [[dataclasses.replace(t, tokens=t.tokens + 100 * i) for i, t in enumerate(own)] for own in traces]
    with pytest.raises(ValueError, match="0 prompts that share token types with others in both modes"):
        bound_points(*alone, chosen(0), given="tokens")


def test_where_thinking_is_not_larger_the_premise_fails_and_the_prompt_is_left_out_of_the_constants() -> None:
    direct = np.full(12, 10.0)
    think = np.where(np.arange(12) < 3, 9.0, 12.0)
    points = bound_points(*bound_traces(direct, think, np.arange(12.0)), chosen(0))
    assert points["premise"].tolist() == [False] * 3 + [True] * 9
    assert points["right"].isna().tolist() == [True] * 3 + [False] * 9
    entry = bound_table(points).iloc[0]
    assert (entry["n"], entry["n_premise"], entry["premise"]) == (12, 9, 0.75)
    assert (entry["premise_low"], entry["premise_high"]) == pytest.approx(wilson_interval(9, 12))
    right = math.sqrt(144 - 100)
    ratio = np.arange(3.0, 12) / right
    assert (entry["c1"], entry["c2"]) == pytest.approx(tuple(np.quantile(ratio, (0.05, 0.95))), rel=1e-5)
    assert np.isnan(entry["r2"]), "right is the same for all: no variance to explain"
    assert entry["p"] == 1, "a premise that fails in a quarter of the prompts"


def test_slope_and_r_squared_are_those_of_a_regression_of_logs() -> None:
    rng = np.random.default_rng(0)
    direct, lift = rng.uniform(10, 20, 15), rng.uniform(1, 5, 15)
    think = direct + rng.uniform(1, 5, 15)
    points = bound_points(*bound_traces(direct, think, lift), chosen(0))
    entry = bound_table(points).iloc[0]
    line = linregress(np.log(points["right"]), np.log(points["left"]))
    assert (entry["r2"], entry["slope"]) == pytest.approx((line.rvalue**2, line.slope))
    x = sm.add_constant(np.log(points["right"].to_numpy()))
    robust = sm.OLS(np.log(points["left"].to_numpy()), x).fit(cov_type="HC3")
    half = t_distribution.ppf(0.975, 13) * robust.bse[1]
    assert (entry["slope_low"], entry["slope_high"]) == pytest.approx((line.slope - half, line.slope + half), rel=1e-4)
    assert 0 <= entry["r2_low"] <= entry["r2"] <= entry["r2_high"] <= 1


def test_the_slope_must_lie_within_its_margin_by_two_one_sided_tests() -> None:
    """Where the whole 95% interval lies within 0.5 to 1.5, and only there, p is under 0.05."""
    rng = np.random.default_rng(1)
    right = np.exp(rng.normal(size=60))
    seen = set()
    for power in np.linspace(0, 2, 41):
        left = right**power * np.exp(0.4 * rng.normal(size=60))
        points = pd.DataFrame({"prompt": range(60), "layer": 3, "left": left, "right": right, "premise": True, "model": "m"})
        entry = bound_table(points, resamples=50).iloc[0]
        inside = bool(entry["slope_low"] > 0.5 and entry["slope_high"] < 1.5)
        assert inside == (entry["p"] <= 0.05)
        seen.add(inside)
    assert seen == {True, False}


def test_a_left_that_is_not_positive_breaks_the_bound() -> None:
    points = pd.DataFrame({"prompt": range(60), "layer": 3, "right": np.arange(1.0, 61), "premise": True, "model": "m"})
    entry = bound_table(points.assign(left=np.arange(60) - 10.0)).iloc[0]
    assert entry["c1"] < 0 and entry["p"] == 1 and entry[["slope", "r2", "spread"]].isna().all()
    one = bound_table(points.assign(left=np.where(np.arange(60) == 9, -1.0, points["right"]))).iloc[0]
    assert one["c1"] > 0 and one["slope"] == pytest.approx(1), "one of 60 has no log and is left out"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("right", 0.0, "right of prompt 4 at layer 3 can't be 0 where the premise holds"),
        ("right", np.nan, "right of prompt 4 at layer 3 can't be nan"),
        ("left", np.inf, "left of prompt 4 at layer 3 can't be inf"),
        ("prompt", None, "prompt is missing in 1 points"),
    ],
)
def test_points_that_bound_points_can_not_have_returned_are_refused(column: str, value: object, message: str) -> None:
    points = pd.DataFrame({"prompt": range(9), "layer": 3, "left": 1.0, "right": 2.0, "premise": True, "model": "m"})
    with pytest.raises(InputError, match=message):
        bound_table(points.assign(**{column: points[column].where(points.index != 4, value)}))
    loose = points.assign(premise=points.index != 4, right=points["right"].where(points.index != 4))
    assert bound_table(loose, resamples=50).iloc[0]["n_premise"] == 8


def test_random_sets_hold_as_many_of_each_stratum_and_none_of_the_chosen() -> None:
    rng = np.random.default_rng(0)
    acts = csr_array(rng.random((900, 200)) * (rng.random((900, 200)) < np.linspace(0.05, 0.9, 200)))
    chosen_ones = (3, 110, 115, 195)
    every = random_sets(acts, chosen_ones, 50, 0).toarray()
    others = random_sets(acts, chosen_ones, 50, 0, others=True).toarray()
    for sets in (every, others):
        assert np.flatnonzero(sets[:, 0]).tolist() == list(chosen_ones) and (sets.sum(0) == 4).all()
        assert (sets[:80, 1:].sum(0) == 1).all(), "one is rare"
    assert not others[list(chosen_ones), 1:].any() and every[list(chosen_ones), 1:].any()


def test_latents_that_scale_with_the_prompts_norm_meet_the_bound_as_well() -> None:
    gain = np.exp(0.7 * np.random.default_rng(2).normal(size=60))

    def make(i: int, mode: str) -> Trace:
        acts = gain[i] * np.linspace(1, 2, 24) * np.where(np.arange(24) < 4, 1 + (mode == "think"), 1)
        norms = gain[i] * (10.0 + 3 * (mode == "think"))
        return response(np.full((4, 2), norms), prompt=str(i), mode=mode, acts=np.tile(acts, (2, 1)))

    traces = both_modes(60, make)
    control = bound_control(*traces, chosen(0, 1, 2, 3), sets=19).iloc[0]
    assert bound_table(bound_points(*traces, chosen(0, 1, 2, 3))).iloc[0]["slope"] == pytest.approx(1, abs=1e-4)
    assert (control["meets"], control["meets_level"], control["latents"], control["n"]) == (0, 1, 4, 60)
    assert control["slope_level"] == pytest.approx(1, abs=1e-4)


def test_below_eight_prompts_with_the_premise_no_r_squared_is_given() -> None:
    direct = np.full(12, 10.0)
    think = np.where(np.arange(12) < 5, 9.0, 12.0 + np.arange(12))
    entry = bound_table(bound_points(*bound_traces(direct, think, np.arange(12.0)), chosen(0))).iloc[0]
    assert entry["n_premise"] == 7 and np.isfinite(entry["c1"]) and np.isnan(entry["r2"])
    nowhere = bound_table(bound_points(*bound_traces(think, np.full(12, 1.0), np.ones(12)), chosen(0))).iloc[0]
    assert (nowhere["premise"], nowhere["n_premise"]) == (0.0, 0) and np.isnan(nowhere["c1"])


def test_prompts_that_the_features_were_chosen_on_are_refused_everywhere() -> None:
    think, direct = bound_traces(np.full(9, 10.0), np.full(9, 12.0), np.ones(9))
    features = chosen(0, chosen_on=("4",))
    decoders = {3: (torch.eye(2), torch.zeros(2))}
    calls: list[Any] = [
        lambda: bound_points(think, direct, features),
        lambda: bound_control(think, direct, features),
        lambda: assumption_table(think, direct, features, decoders, explained()),
        lambda: assumption_table(think, direct, chosen(0), decoders, explained(), control=features),
        lambda: part_cosines(think, features, 3, *decoders[3]),
        lambda: top_overlap(think, features, 3),
        lambda: layer_curve(think, mode="think", quantity="reasoning_sum", features=features),
        lambda: mode_differences(think, direct, quantity="reasoning_sum", features=features),
    ]
    for i, call in enumerate(calls):
        with pytest.raises(ValueError, match="prompt '4' is one that the features were chosen on"):
            call()
            pytest.fail(f"call {i} took it")


def test_modes_that_can_not_be_paired_are_refused() -> None:
    think, direct = bound_traces(np.full(9, 10.0), np.full(9, 12.0), np.ones(9))
    with pytest.raises(ValueError, match="different prompts"):
        bound_points(think, direct[1:], chosen(0))
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        bound_points(think[:7], direct[:7], chosen(0))


def test_decoder_cosine_is_a_double_loop() -> None:
    directions = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    cosines = [
        abs(float(torch.cosine_similarity(a, b, dim=0)))
        for i, a in enumerate(directions)
        for j, b in enumerate(directions)
        if i != j
    ]
    assert decoder_cosine(directions) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert decoder_cosine(torch.eye(6) * 3) == pytest.approx(0, abs=1e-7)
    assert decoder_cosine(torch.tensor([[1.0, 0], [-5, 0]])) == pytest.approx(1)
    assert math.isnan(decoder_cosine(torch.ones(1, 3)))


def test_in_parts_decoder_cosine_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    whole = decoder_cosine(directions)
    monkeypatch.setattr("tl_l2norm.analysis.directions._PAIRS_AT_ONCE", 130)
    assert decoder_cosine(directions) == pytest.approx(whole, abs=1e-6)


def test_of_very_many_directions_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.randn(400, 32, generator=torch.Generator().manual_seed(2))
    whole = decoder_cosine(directions)
    monkeypatch.setattr("tl_l2norm.analysis.directions.MOST_DIRECTIONS", 200)
    drawn = decoder_cosine(directions, seed=1)
    assert drawn == pytest.approx(whole, rel=0.03) and drawn != whole
    assert decoder_cosine(directions, seed=1) == drawn != decoder_cosine(directions, seed=2)


@pytest.mark.parametrize("d_model", [2, 16, 576])
def test_random_directions_have_the_cosine_of_a_simulation(d_model: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 20_000, d_model))
    cosines = np.abs((first * second).sum(1)) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert random_cosine(d_model) == pytest.approx(cosines.mean(), rel=0.02)
    assert random_cosine(2) == pytest.approx(2 / math.pi)
    assert random_cosine_spread(d_model, 1) == pytest.approx(cosines.std(), rel=0.03)


def test_the_mean_over_all_pairs_of_random_directions_scatters_as_said() -> None:
    means = [decoder_cosine(torch.randn(20, 8, generator=torch.Generator().manual_seed(i))) for i in range(300)]
    assert np.std(means) == pytest.approx(random_cosine_spread(8, 190), rel=0.15)


def test_pairs_that_are_active_together_by_hand() -> None:
    """Latents 0 and 1 are active together on two tokens, 0, 1 and 2 on one; 3 is always alone."""
    acts = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    decoder = torch.tensor([[1.0, 0], [1, 1], [0, 2], [1, 0]])
    traces = [response(np.ones((4, 4)), prompt=str(i), acts=acts) for i in range(8)]
    value, pairs = coactive_cosine(traces, 3, decoder)
    half = 0.5**0.5
    assert value.mean == pytest.approx((half + half + (half + 0 + half)) / 5) and (value.n, pairs) == (8, 3)
    alone, none = coactive_cosine([response(np.ones((4, 1)), prompt="0", acts=acts[3:])], 3, decoder)
    assert np.isnan(alone.mean) and none == 0


def test_the_error_against_the_gap_is_that_of_squares() -> None:
    """Norms 5 and 4: squares 25 and 16, 20.5 on average, gap 9. A gap that may be 0 leaves no upper end."""
    think, direct = bound_traces(np.full(9, 4.0), np.full(9, 5.0), np.ones(9))
    assert error_against_gap(think, direct, 3, 0.05).mean == pytest.approx(0.05 * 20.5 / 9)
    think, direct = bound_traces(np.linspace(4, 6, 9), np.linspace(6, 4, 9), np.ones(9))
    assert error_against_gap(think, direct, 3, 0.05).high == np.inf


def sparse_traces(n: int = 8, latents: int = 6, length: int = 9) -> list[Trace]:
    """Thinking responses with sparse random activations."""
    rng = np.random.default_rng(3)
    return [
        response(
            np.ones((4, length)),
            prompt=str(i),
            acts=(rng.random((length, latents)) * (rng.random((length, latents)) < 0.4)),
        )
        for i in range(n)
    ]


def test_part_cosines_are_those_of_dense_reconstructions() -> None:
    generator = torch.Generator().manual_seed(4)
    decoder, bias = torch.randn(6, 5, generator=generator), torch.randn(5, generator=generator)
    traces = sparse_traces()
    sinks = torch.zeros(4, 10, dtype=torch.bool)
    sinks[3, 4] = True
    traces[0] = dataclasses.replace(traces[0], is_sink=sinks)
    cosine = part_cosines(traces, chosen(1, 4), 3, decoder, bias)
    means = []
    for trace in traces:
        cosines = []
        dense = trace.features[3].dense()
        for position in range(1, 10):
            own = sum(dense[position, j] * decoder[j] for j in (1, 4))
            rest = bias + sum(dense[position, j] * decoder[j] for j in (0, 2, 3, 5))
            if not bool(trace.is_sink[3, position]) and bool(dense[position, [1, 4]].any()):
                cosines.append(abs(float(torch.cosine_similarity(torch.as_tensor(own), torch.as_tensor(rest), dim=0))))
        means.append(np.mean(cosines))
    assert cosine.mean == pytest.approx(np.mean(means), abs=1e-5) and cosine.n == 8
    assert cosine.low < cosine.mean < cosine.high


def test_parts_that_are_orthogonal_or_the_same_have_cosines_0_and_1() -> None:
    traces = [response(np.ones((4, 2)), prompt=str(i), acts=np.array([[1.0, 2], [3, 1]])) for i in range(8)]
    assert part_cosines(traces, chosen(0), 3, torch.eye(2), torch.zeros(2)).mean == pytest.approx(0)
    assert part_cosines(traces, chosen(0), 3, torch.ones(2, 2), torch.zeros(2)).mean == pytest.approx(1)
    assert part_cosines(traces, chosen(0), 3, torch.tensor([[1.0, 0], [-2, 0]]), torch.zeros(2)).mean == pytest.approx(1)


def test_a_prompt_on_which_no_reasoning_feature_is_active_has_no_angle() -> None:
    traces = [response(np.ones((4, 2)), prompt=str(i), acts=np.array([[float(i > 2), 2], [0, 1]])) for i in range(12)]
    assert part_cosines(traces, chosen(0), 3, torch.ones(2, 2), torch.zeros(2)).n == 9


def test_top_overlap_by_brute_force() -> None:
    traces = sparse_traces(length=30)
    overlap = top_overlap(traces, chosen(0, 2), 3, share=0.2)
    sums = []
    for trace in traces:
        dense = trace.features[3].dense()[1:].double().numpy()
        sums += [(entry[[0, 2]].sum(), entry[[1, 3, 4, 5]].sum()) for entry in dense]
    own, rest = (np.array(side) for side in zip(*sums, strict=True))
    tops = [set(np.flatnonzero(side > np.quantile(side, 0.8)).tolist()) for side in (own, rest)]
    assert overlap.mean == pytest.approx(len(tops[0] & tops[1]) / len(tops[0]), abs=1e-9)
    assert overlap.low < overlap.mean < overlap.high and overlap.n == 8


def test_parts_that_are_active_together_overlap_fully_and_apart_not_at_all() -> None:
    rng = np.random.default_rng(5)

    def traces(other: str) -> list[Trace]:
        made = []
        for i in range(8):
            x = rng.random(40)
            made.append(response(np.ones((4, 40)), prompt=str(i), acts=np.stack([x, x if other == "same" else 1 - x], axis=1)))
        return made

    assert top_overlap(traces("same"), chosen(0), 3, share=0.1).mean == 1.0
    assert top_overlap(traces("apart"), chosen(0), 3, share=0.1).mean == 0.0


def test_independent_parts_overlap_in_the_share_that_is_looked_at() -> None:
    rng = np.random.default_rng(6)
    traces = [response(np.ones((4, 400)), prompt=str(i), acts=rng.random((400, 2))) for i in range(8)]
    overlap = top_overlap(traces, chosen(0), 3, share=0.1)
    assert overlap.mean == pytest.approx(0.1, abs=0.03) and overlap.low < 0.1 < overlap.high


def explained(**figures: float) -> pd.DataFrame:
    """As `evaluate_saes` gives it."""
    entry = {
        "explained_variance": 0.97,
        "low": 0.96,
        "high": 0.98,
        "residual": 0.04,
        "residual_low": 0.03,
        "residual_high": 0.06,
    }
    return pd.DataFrame([{"layer": 3, **entry, **figures, "n": 8}])


def test_the_four_assumptions_in_one_table() -> None:
    traces = sparse_traces(n=10)
    think, direct = traces, [t.with_labels(mode="direct") for t in traces]
    decoder, bias = torch.eye(6), torch.zeros(6)
    assumptions = assumption_table(think, direct, chosen(1, 4), {3: (decoder, bias)}, explained(), control=chosen(0, 2))
    by_name = assumptions.set_index("assumption")
    assert assumptions["assumption"].tolist() == list(BOUNDS)
    assert by_name.loc["A1", "value"] == 0 and by_name.loc["A1", "n"] == 0 and by_name.loc["A1", "holds"] == "holds"
    assert by_name.loc["A1", "control"] == pytest.approx(random_cosine(6))
    half = 1.96 * random_cosine_spread(6, 15)
    assert by_name.loc["A1", "control_high"] - by_name.loc["A1", "control_low"] == pytest.approx(2 * half)
    assert by_name.loc["A1 co-active", "value"] == 0 and by_name.loc["A1 co-active", "n"] == 10
    assert by_name.loc["A2 gap", "value"] == np.inf, "the modes have the same norms: nothing to resolve"
    assert by_name["holds"].to_dict()["A2 R2"] == "holds" and by_name.loc["A2 residual", "holds"] == "undecided"
    assert by_name.loc["A3", "value"] == pytest.approx(0, abs=1e-6) and by_name.loc["A3", "holds"] == "holds"
    assert by_name.loc["A4", "value"] == pytest.approx(top_overlap([*think, *direct], chosen(1, 4), 3).mean)
    assert by_name.loc["A4", "control"] == pytest.approx(top_overlap([*think, *direct], chosen(0, 2), 3).mean)
    assert by_name.loc["A4", "control_low"] <= by_name.loc["A4", "control"] <= by_name.loc["A4", "control_high"]
    assert by_name.loc["A4", "control_name"] == "as many latents, shuffled modes"


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("A2 R2", 0.96, 0.99, "holds"),
        ("A2 R2", 0.94, 0.96, "undecided"),
        ("A2 R2", 0.90, 0.94, "does not hold"),
        ("A2 R2", np.nan, np.nan, "not measured"),
        ("A2 residual", 0.01, 0.04, "holds"),
        ("A2 residual", 0.04, 0.06, "undecided"),
        ("A2 residual", 0.06, 0.08, "does not hold"),
    ],
)
def test_an_assumption_holds_only_with_its_whole_interval(name: str, low: float, high: float, verdict: str) -> None:
    ends = {"low": low, "high": high} if name == "A2 R2" else {"residual_low": low, "residual_high": high}
    traces = sparse_traces()
    direct = [t.with_labels(mode="direct") for t in traces]
    assumptions = assumption_table(traces, direct, chosen(), {3: (torch.eye(6), torch.zeros(6))}, explained(**ends))
    assert assumptions.set_index("assumption").loc[name, "holds"] == verdict


def test_too_few_prompts_are_refused() -> None:
    traces = sparse_traces(n=7)
    with pytest.raises(ValueError, match="7 prompts: at least 8"):
        assumption_table(traces, traces, chosen(0), {3: (torch.eye(6), torch.zeros(6))}, explained())


def test_with_no_feature_found_the_tables_say_so_instead_of_failing() -> None:
    def make(i: int, mode: str) -> Trace:
        return response(np.full((4, 9), 5.0 + i), prompt=f"p{i:02}", mode=mode, acts=np.ones((9, 4)))

    think, direct = both_modes(24, make)
    features = find_reasoning_features(think, direct)
    assert len(features) == 0
    think, direct = list(features.held_out(think)), list(features.held_out(direct))
    points = bound_points(think, direct, features)
    assert points.empty and list(points.columns) == ["prompt", "layer", "left", "right", "premise", "model"]
    table = bound_table(points)
    assert table.empty and {"layer", "premise", "c1", "r2", "seed", "model"} <= set(table.columns)
    assumptions = assumption_table(think, direct, features, {3: (torch.eye(4), torch.zeros(4))}, explained())
    names = ["A1", "A1 co-active", "A2 R2", "A2 residual", "A2 gap"]
    assert assumptions["assumption"].tolist() == names, "what rests on weights alone is still there"
    assert features.evaluate(think, direct).empty
    curve = layer_curve(think, mode="think", quantity="reasoning_sum", features=features)
    assert (curve.layers, curve.mean.tolist(), curve.low.tolist()) == ((3,), [0.0], [0.0]), (
        "no latent sums to 0, not to nothing"
    )
    differences = mode_differences(think, direct, quantity="reasoning_sum", features=features)
    assert differences["difference"].tolist()[3] == 0 and differences["difference"].isna().tolist() == [True] * 3 + [False]


def test_features_of_one_layer_leave_the_others_out() -> None:
    def make(i: int, mode: str) -> Trace:
        trace = response(np.full((4, 2), 10.0 + 2 * (mode == "think")), prompt=str(i), mode=mode, acts=np.ones((2, 2)))
        low = FeatureActs.of_dense(torch.ones(3, 2), sae="by hand")
        return dataclasses.replace(trace, features={1: low, 3: trace.features[3]})

    features = dataclasses.replace(chosen(0), latents={1: (), 3: (0,)}, saes={1: "by hand", 3: "by hand"})
    points = bound_points(*both_modes(8, make), features)
    assert points["layer"].unique().tolist() == [3] and len(points) == 8


def test_points_that_are_given_twice_are_refused() -> None:
    direct = np.linspace(10, 20, 12)
    points = bound_points(*bound_traces(direct, direct + 1, 0.25 * direct), chosen(0))
    for twice in (pd.concat([points, points]), pd.concat([points, points.iloc[3:4]]), pd.concat([points.iloc[-1:], points])):
        with pytest.raises(ValueError, match="twice"):
            bound_table(twice)
