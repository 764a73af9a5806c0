"""Verdicts on tables made by hand: the rule, its boundary, and what a missing table says."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.paper_tables import filled
from tl_l2norm.analysis.trend import PARTS
from tl_l2norm.paper.claims import CLAIMS, adjust, claims_table


def verdict(number: int, tables: dict[str, pd.DataFrame], notes: dict[str, str] | None = None) -> Any:
    table = claims_table({name: filled(name, frame) for name, frame in tables.items()}, notes or {})
    assert table["number"].tolist() == [claim.number for claim in CLAIMS]
    return table.set_index("number").loc[number]


def shape(sharp: tuple[float, float, float], source: str = "trained SAE", but_last: float = 0.6) -> dict[str, Any]:
    value, low, high = sharp
    inner = {"sharpness_but_last": but_last, "sharpness_but_last_low": but_last, "sharpness_but_last_high": but_last}
    spike = {"spike": 10.0, "spike_low": 5.0, "spike_high": 15.0}
    fixed = {"n": 20, "description": "made by hand", "source": source}
    return {"sharpness": value, "sharpness_low": low, "sharpness_high": high, **inner, **spike, **fixed}


def shapes(p: float = 0.001, knot: float = 9.0) -> pd.DataFrame:
    """Two straight pieces against three smooth curves, for thinking and for the difference; the worst p is of the last."""
    curves = [(curve, rival) for curve in ("think", "think minus direct") for rival in ("exponential", "power", "logistic")]
    table = pd.DataFrame(curves, columns=["curve", "rival"]).assign(p_prompts=0.0005, p_layers=0.0005, knot=knot)
    table.loc[5, "p_layers"] = p
    return table.assign(error=0.2, broken_error=0.1, n_layers=12)


def effect_on_correctness(**changed: Any) -> pd.DataFrame:
    fixed = {"beta": 0.5, "low": 0.2, "high": 0.8, "p": 0.001, "tolerance": 0.6, "auc_without": 0.55, "n": 40, "n_same": 10}
    fixed |= {
        "p_families": 0.001,
        "gain": 0.017,
        "gain_low": 0.002,
        "gain_high": 0.033,
        "n_samples": 320,
        "right": 0.62,
        "verdict": "supported",
    }
    layers = ("late", "late given types")
    entries = [{"responses": kind, "layer": layer, **fixed} for kind in ("all", "finished") for layer in layers]
    return pd.DataFrame(entries).assign(**changed)


def test_right_responses_are_told_with_the_share_that_is_right_and_gains_in_points() -> None:
    claim = verdict(0, {"correctness": effect_on_correctness()})
    assert claim["verdict"] == "supported" and claim["interval"] == "[0.20, 0.80]"
    assert claim["measured"].endswith("62% of the samples are right") and "8 samples" not in claim["why"]
    assert claim["control"].endswith("rank right 55%, with the norm +1.7 points [0.2, 3.3]")


@pytest.mark.parametrize(
    ("changed", "p", "expected"),
    [
        ({"p": [0.001, 0.3, 0.001, 0.001]}, 0.3, "not supported"),  # the types' doing
        ({"beta": [0.5, 0.5, 0.5, -0.5]}, 0.001, "not supported"),
        ({"p_families": [0.01, 0.3, 0.01, 0.01]}, 0.3, "not supported"),  # one family's
        ({"p_families": 0.02}, 0.02, "supported"),
    ],
)
def test_right_responses_must_be_louder_beside_token_types_and_without_any_family(
    changed: dict[str, Any], p: float, expected: str
) -> None:
    claim = verdict(0, {"correctness": effect_on_correctness(**changed)})
    assert (claim["verdict"], claim["p"]) == (expected, p)
    assert "of what token types leave of it 0.50" in claim["measured"] or "-0.50" in str(changed)
    assert "whichever of several is left out" in claim["why"]


UNTESTED = {"verdict": "can't be tested here"}
NO = [np.nan, np.nan]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"p_families": [0.01, 0.01, *NO]},
            "^it would rest on one family: without it fewer than 8 problems have right and wrong",
        ),
        ({"cut_off": 0.08}, "8% of the responses were cut off.*more tokens, until at most 5% are$"),
        ({"tolerance": 0.04}, "^length and log-probability leave 4.0% of the norm's variance within problems, under 10%"),
        ({"p": np.nan, "beta": np.nan, "n": 5}, "^5 of 15 problems have right and wrong responses, at least 8 are needed"),
        ({"tolerance": 0.04, "n_samples": 160}, "under 10%.*; give 8 samples of a problem or more"),
        ({"p": [0.01, 0.01, *NO], "beta": [0.5, 0.5, *NO], "n": [8, 8, 7, 7]}, "^7 of 17 problems"),
        ({"tolerance": [0.6, 0.04, 0.6, 0.04]}, "^token types, length and log-prob.* leave 4.0%.*told from the token types$"),
    ],
)
def test_what_an_untested_effect_on_correctness_lacks_is_named(changed: dict[str, Any], why: str) -> None:
    claim = verdict(0, {"correctness": effect_on_correctness(**(UNTESTED | changed))})
    assert claim["verdict"] == "can't be tested here" and re.search(why, claim["why"])


@pytest.mark.parametrize(
    ("own", "control", "p", "expected"),
    [
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), 0.01, "supported"),
        ((0.8, 0.7, 0.9), (0.6, 0.5, 0.75), 0.01, "uninformative"),  # the control's interval reaches into ours
        ((0.55, 0.45, 0.65), (0.3, 0.2, 0.4), 0.01, "not supported"),  # not surely over a half
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), 0.06, "not supported"),  # one smooth curve does as well, by layers
    ],
)
def test_features_must_spike_in_two_pieces_more_than_every_control(own: Any, control: Any, p: float, expected: str) -> None:
    dynamics = pd.DataFrame([shape(control, "untrained SAE"), shape(own)])  # whichever stands first
    claim = verdict(1, {"feature_dynamics": dynamics, "feature_shapes": shapes(p)})
    assert claim["verdict"] == expected and claim["n"] == 20 and claim["p"] == p
    assert claim["control"] == "untrained SAE {:.0%} [{:.0%}, {:.0%}]".format(*control)


@pytest.mark.parametrize("control", [[], [shape((np.nan,) * 3, "untrained SAE")]])
def test_a_spike_without_a_control_is_not_tested(control: list[dict[str, Any]]) -> None:
    tables = {"feature_dynamics": pd.DataFrame([shape((0.8, 0.7, 0.9)), *control]), "feature_shapes": shapes()}
    claim = verdict(1, tables)
    assert claim["verdict"] == "can't be tested here" and "no control to hold it against" in claim["why"]


@pytest.mark.parametrize("changed", [{"but_last": 0.4}, {"knot": 10.0}])
def test_a_rise_that_is_the_last_blocks_alone_is_no_late_rise(changed: Any) -> None:
    """The unembedding alone reads what the last block writes."""
    own = shape((0.8, 0.7, 0.9), **{k: v for k, v in changed.items() if k == "but_last"})
    knots = shapes(**{k: v for k, v in changed.items() if k == "knot"})
    dynamics = pd.DataFrame([own, shape((0.3, 0.2, 0.4), "untrained SAE")])
    assert verdict(1, {"feature_dynamics": dynamics, "feature_shapes": knots})["verdict"] == "not supported"
    assert verdict(2, {**NORM, "dynamics": pd.DataFrame([own]), "shapes": knots})["verdict"] == "not supported"


def test_without_a_rise_of_features_nothing_can_be_said() -> None:
    claim = verdict(1, {"feature_dynamics": pd.DataFrame([shape((np.nan,) * 3)])})
    assert claim["verdict"] == "can't be tested here" and "no reasoning features" in claim["why"]


def differences(low: list[float], source: str) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(low)), "low": low, "high": [x + 1 for x in low], "n": 30, "source": source})


def effects(effect: list[float], p: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(effect)), "effect": effect, "p": p, "p_max": p, "n": 30})


NORM = {
    "differences": pd.concat([differences([0.1, 0.2], "as asked"), differences([-0.5, -0.5], "shuffled modes")]),
    "dynamics": pd.DataFrame([shape((0.7, 0.6, 0.9))]),
    "mode_effects": effects([1.0, 2.0], [0.001, 0.01]),
    "shapes": shapes(),
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "supported"),
        ({"mode_effects": effects([1.0, 2.0], [0.001, 0.06])}, "not supported"),  # one layer isn't surely above
        ({"mode_effects": effects([1.0, -2.0], [0.001, 0.001])}, "not supported"),  # one is surely below
        ({"dynamics": pd.DataFrame([shape((0.5, 0.4, 0.9))])}, "not supported"),
        ({"shapes": shapes(knot=np.nan)}, "not supported"),  # it bends downwards
        ({"shapes": shapes(p=0.2)}, "not supported"),
    ],
)
def test_the_norm_must_be_above_everywhere_with_all_else_equal_and_spike(changed: Any, expected: str) -> None:
    claim = verdict(2, {**NORM, **changed})
    assert claim["verdict"] == expected and "above direct at 2 of 2 layers, below at 0" in claim["measured"]
    assert claim["control"] == "shuffled modes: above at 0, below at 0"


def test_where_mode_cannot_be_told_from_length_the_claim_is_not_tested_but_the_figures_are_there() -> None:
    tables = {name: table for name, table in NORM.items() if name != "mode_effects"}
    claim = verdict(2, tables, {"mode_effects": "mode can't be told from length"})
    assert claim["verdict"] == "can't be tested here" and claim["why"] == "mode can't be told from length"
    assert np.isnan(claim["p"]) and "2 of 2 layers" in claim["measured"]


def linked(source: str, quantity: str, low: float, value: float, high: float, p: float = 0.004) -> dict[str, Any]:
    fixed = {"layer": "late", "n": 25, "p_subsets": p, "subsets_mean": 0.0, "subsets_low": -0.05, "subsets_high": 0.05}
    return {"source": source, "quantity": quantity, "rho": value, "low": low, "high": high, **fixed}


@pytest.mark.parametrize("entropy", [(0.3, 0.4, 0.5), (-0.75, -0.4, -0.3)])
def test_the_norm_and_the_share_are_described_beside_entropies_random_sets_and_controls(entropy: Any) -> None:
    entries = [linked("untrained SAE", "l2_norm", 0.1, 0.2, 0.3), linked("trained SAE", "hidden_entropy", 0.0, 0.1, 0.2)]
    entries += [linked("trained SAE", "l2_norm", 0.7, 0.8, 0.9), linked("trained SAE", "output_entropy", *entropy)]
    entries.append({**linked("trained SAE", "l2_norm", 0.1, 0.3, 0.5), "layer": "late but the last"})
    claim = verdict(3, {"links": pd.DataFrame(entries)})
    assert claim["verdict"] == "described" and np.isnan(claim["p"]) and "84.1" in claim["paper"]
    assert claim["measured"].startswith("rho of norm and share of activation 0.80 (late layers, without the last block 0.30")
    assert f"best entropy (output_entropy) {entropy[1]:.2f}" in claim["measured"]
    assert claim["control"].endswith("(p = 0.004), untrained SAE 0.20 [0.10, 0.30]")


def test_controls_alone_are_not_taken_for_the_models_own() -> None:
    claim = verdict(3, {"links": pd.DataFrame([linked("untrained SAE", "l2_norm", 0.7, 0.8, 0.9)])})
    assert claim["verdict"] == "can't be tested here" and "nothing of the trained SAEs" in claim["why"]


def test_tables_of_several_analyses_or_filtered_ones_are_told() -> None:
    kinds = pd.DataFrame(
        {"kind": ["thinking", "direct"], "among_top": [0.5, 0.1], "overall": [0.3, 0.2], "n": 12, "excess": 0.1}
    )
    top = pd.DataFrame([{"layer": "late", "effect": 0.2, "low": 0.1, "high": 0.3, "p": 0.01}])
    with pytest.raises(ValueError, match="the table of high_norm_tokens is of 2 models"):
        verdict(10, {"high_norm_tokens": pd.concat([kinds.assign(model=m) for m in "ab"]), "top_effects": top})
    with pytest.raises(ValueError, match="holds entries twice"):
        verdict(10, {"high_norm_tokens": pd.concat([kinds, kinds]), "top_effects": top})
    filtered = verdict(10, {"high_norm_tokens": kinds, "top_effects": top.assign(layer=3)})
    assert filtered["verdict"] == "can't be tested here" and "lack the entry 'late'" in filtered["why"]
    empty = verdict(10, {"high_norm_tokens": kinds.head(0)})
    assert empty["why"] == "the table of high_norm_tokens is empty"


def test_thinking_tokens_must_be_louder_than_their_likes() -> None:
    kinds = pd.DataFrame({"kind": ["thinking", "direct"], "among_top": [0.5, 0.1], "overall": [0.3, 0.2], "n": 12})
    kinds["excess"] = kinds["among_top"] - kinds["overall"]
    for effect, p, expected in ((0.2, 0.01, "supported"), (0.2, 0.2, "not supported"), (-0.2, 0.01, "not supported")):
        table = pd.DataFrame([{"layer": "late", "effect": effect, "low": effect - 0.1, "high": effect + 0.1, "p": p}])
        assert verdict(10, {"high_norm_tokens": kinds, "top_effects": table})["verdict"] == expected


def test_the_primary_endpoint_is_judged_alone_and_the_others_by_holm() -> None:
    """Holm by hand: sorted 0.01, 0.02, 0.04 become 3 x 0.01, 2 x 0.02, 0.04, each at least the one before."""
    adjusted = adjust([0, 1, 2, 3, 4], [0.04, 0.04, 0.01, 0.02, float("nan")])
    assert adjusted[:4] == pytest.approx([0.04, 0.04, 0.03, 0.04]) and np.isnan(adjusted[4])


def bound(premise: tuple[float, float] = (1.0, 0.97), **changed: list[float]) -> pd.DataFrame:
    """Of two layers; what is changed is so at the second."""
    table = pd.DataFrame({"layer": [0, 1], "premise": premise, "premise_low": [p - 0.02 for p in premise], "n": 100})
    fits = {"c1": 0.5, "c2": 1.0, "spread": 2.0, "spread_right": 4.0, "slope": 1.1, "slope_low": 0.9, "slope_high": 1.3}
    table = table.assign(n_premise=97, **fits, r2=0.8, r2_low=0.7, r2_high=0.9, p=0.001)
    table.loc[1, list(changed)] = list(changed.values())
    return table


def sets(meets: float = 0.0, level: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({"layer": [0, 1], "sets": 199, "meets": [0.0, meets], "meets_level": [level, 0.0], "n": 97})


@pytest.mark.parametrize(
    ("table", "control", "expected"),
    [
        (bound(), sets(), "supported"),
        (bound(), sets(meets=0.04, level=0.05), "supported"),
        (bound(), sets(meets=0.06), "uninformative"),  # other latents, as differences
        (bound(), sets(level=0.06), "uninformative"),  # other latents, as they are
        (bound(premise=(1.0, 0.0)), sets(), "not supported"),
        (bound(p=0.2), sets(), "not supported"),  # a slope that may lie outside the margin
        (bound(r2_low=0.4), sets(), "can't be tested here"),  # prompts that are alike
        (bound(r2_low=0.4, slope=0.3, slope_low=0.0, slope_high=0.6), sets(), "not supported"),  # a slope of 1 is denied
        (bound(r2_low=0.4, slope=0.3, slope_low=-0.3, slope_high=0.9), sets(), "can't be tested here"),  # by too little
        (bound(r2_low=0.4, c1=-0.1), sets(), "not supported"),
        (bound(c1=-0.1), sets(), "not supported"),
        (bound(spread=5.0), sets(), "can't be tested here"),  # wider than right itself
        (bound(spread=5.0, slope=1.8, slope_low=1.6, slope_high=2.0), sets(), "not supported"),
        (bound(p=np.nan), sets(), "can't be tested here"),
    ],
)
def test_the_theorem_needs_premise_slope_fit_and_spread_at_every_layer_of_the_chosen_latents_alone(
    table: pd.DataFrame, control: pd.DataFrame, expected: str
) -> None:
    claim = verdict(4, {"bound": table, "bound_given_tokens": bound(), "bound_control": control})
    assert claim["verdict"] == expected and "nearly all prompts at" in claim["measured"]
    claim = verdict(4, {"bound": bound(), "bound_given_tokens": table, "bound_control": control})
    assert claim["verdict"] == expected and "; given token types and places slope in logs" in claim["measured"]


def test_why_prompts_that_are_alike_do_not_test_the_theorem() -> None:
    unclear, failed = bound(r2_low=0.4, spread=5.0), bound(c1=-0.1)
    why = verdict(4, {"bound": unclear, "bound_given_tokens": bound(), "bound_control": sets()})["why"]
    assert why.startswith(
        "layer 1: the prompts' right sides are too much alike (95% over 5% quantile 4.00) beside left / right (5.00)"
    )
    why = verdict(4, {"bound": bound(), "bound_given_tokens": unclear, "bound_control": sets()})["why"]
    assert why.startswith("layer 1: of what token types and places leave, the prompts' right sides")
    claim = verdict(4, {"bound": failed, "bound_given_tokens": unclear, "bound_control": sets()})
    assert claim["verdict"] == "not supported", "one layer, or one side, without a bound is enough"


def test_without_other_latents_the_theorem_is_not_tested() -> None:
    tables = {"bound": bound(), "bound_given_tokens": bound()}
    claim = verdict(4, tables, {"bound_control": "too few for sets of the same kind"})
    assert claim["verdict"] == "can't be tested here" and claim["why"] == "too few for sets of the same kind"
    assert "premise by layer 97% to 100%" in claim["interval"]


def assumption(holds: list[str], control: float = 0.5, name: str = "A4") -> pd.DataFrame:
    fixed = {"assumption": name, "statement": "overlap", "bound": 0.03, "value": 0.01, "low": 0.0, "high": 0.02, "n": 12}
    beside = {"control": control, "control_low": control - 0.01, "control_high": control + 0.01, "control_name": "shuffled"}
    return pd.DataFrame({"layer": range(len(holds)), "holds": holds, **beside, **fixed})


def test_an_assumption_is_described_and_says_when_its_control_keeps_its_bound_too() -> None:
    claim = verdict(8, {"assumptions": assumption(["holds", "undecided"])})
    assert claim["verdict"] == "described" and np.isnan(claim["p"]) and "holds at 1 of 2 layers" in claim["measured"]
    assert claim["measured"].endswith("holds at 1 of 2 layers, undecided at 1") and "undecided where" in claim["why"]
    assert claim["control"] == "shuffled 0.5 [0.49, 0.51]" and "says little" not in claim["why"]
    assert "says little" in verdict(8, {"assumptions": assumption(["holds"], control=0.01)})["why"]


def test_layers_are_counted_by_the_worst_of_an_assumptions_parts() -> None:
    parts = [assumption(["holds", "holds", "undecided", "holds"], name="A2 R2")]
    parts.append(assumption(["holds", "undecided", "does not hold", "not measured"], name="A2 residual"))
    claim = verdict(6, {"assumptions": pd.concat(parts)})
    assert claim["measured"].endswith("; holds at 1 of 4 layers, undecided at 1, not measured at 1, does not hold at 1")


def test_parts_of_an_assumption_stand_side_by_side_with_their_controls() -> None:
    parts = [assumption(["does not hold"], 0.07, "A1"), assumption(["does not hold"], 0.08, "A1 co-active")]
    claim = verdict(5, {"assumptions": pd.concat(parts)})
    assert claim["measured"].startswith("all pairs 0.01 (greatest, layer 0), co-active 0.01 (greatest, layer 0)")
    assert claim["control"] == "all pairs against shuffled 0.07 [0.06, 0.08], co-active against shuffled 0.08 [0.07, 0.09]"
    assert verdict(6, {"assumptions": assumption(["holds"], np.nan, "A2 gap")})["control"] == "none"


def arms(
    own: float, paired: float, random: float, *, p: float = 1e-3, p_margin: float = 1e-3, dose: float = 1.0, high: float = -0.5
) -> dict[str, pd.DataFrame]:
    """Differences over all thresholds, nearly; under nothing 80% are right."""
    pairs = {("paired", "random"): own, ("paired", "none"): paired, ("random", "none"): random, ("high", "none"): high}
    fixed = {"quantile": np.nan, "low": -0.6, "high": 0.1, "p": p, "p_margin": p_margin, "dose": dose, "n": 50, "thresholds": 2}
    counts = {"positions": 9.0, "against_positions": 9.0 * dose, "events": 20.0, "against_events": 20.0 * dose}
    entries = [{"arm": a, "against": b, "difference": d, **fixed, **counts} for (a, b), d in pairs.items()]
    one = {**entries[0], "quantile": 0.8, "difference": 0.5}
    names = ["none", "high", "paired", "random"]
    causal = pd.DataFrame({"arm": names, "accuracy": [0.8, 0.3, 0.6, 0.75], "cut_off": [0.02, 0.04, 0.03, 0.02]})
    return {"causal_differences": pd.DataFrame([one, *entries]), "causal": causal}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (arms(-0.2, -0.25, -0.05), "supported"),
        (arms(-0.2, -0.25, -0.05, p=0.2), "not supported"),  # no more than the partners cost
        (arms(-0.2, -0.25, -0.05, p_margin=0.2), "not supported"),  # partners may cost ten points too
        (arms(0.2, -0.05, -0.25), "not supported"),
        (arms(-0.2, -0.5, -0.3), "uninformative"),  # the partners break it as well
        (arms(0.1, -0.5, -0.6), "uninformative"),
        (arms(-0.05, -0.06, -0.01, high=-0.05), "not supported"),  # nothing breaks
        (arms(-0.05, -0.06, -0.01), "can't be tested here"),  # only high ones without partners do
        (arms(-0.2, -0.25, -0.05, dose=0.9), "can't be tested here"),
        (arms(-0.2, -0.25, -0.05, dose=1.3), "can't be tested here"),
        (arms(-0.2, -0.25, -0.05, dose=np.nan), "can't be tested here"),
    ],
)
def test_suppression_needs_a_loss_that_the_partners_of_high_tokens_dont_make(tables: Any, expected: str) -> None:
    claim = verdict(12, tables)
    assert claim["verdict"] == expected and claim["n"] == 50
    assert f"{tables['causal_differences']['difference'][1] * 100:+.1f} [-60, 10]" in claim["measured"]


def test_where_suppression_leaves_no_room_to_end_it_is_not_tested() -> None:
    tables = arms(-0.2, -0.25, -0.05)
    tables["causal"]["cut_off"] = [0.02, 0.3, 0.25, 0.02]
    claim = verdict(12, tables)
    assert claim["verdict"] == "can't be tested here" and "30% of the responses with all high-norm tokens" in claim["why"]


def test_layers_without_reasoning_features_leave_the_theorem_untested() -> None:
    explained = pd.DataFrame({"layer": [0, 1, 2], "r2": 0.99})
    tables = {"bound": bound(), "bound_given_tokens": bound(), "bound_control": sets()}
    claim = verdict(4, {**tables, "explained": explained})
    assert claim["verdict"] == "can't be tested here" and "at 2 of 3 layers with SAEs" in claim["why"]


def test_unlike_doses_are_told_and_a_model_that_knows_nothing_cant_be_broken() -> None:
    why = verdict(12, arms(-0.2, -0.25, -0.05, dose=0.8))["why"]
    assert "7.2 positions (16.0 positions and layers), high-norm ones 9.0 (20.0); needs 95% to 125%" in why
    tables = arms(-0.2, -0.25, -0.05)
    tables["causal"] = tables["causal"].assign(accuracy=0.1)
    assert "10% are right: there is little to break" in verdict(12, tables)["why"]


def links(*entries: tuple[float, float, float]) -> dict[str, pd.DataFrame]:
    """Of each reading rho, p by flips and by shifts."""
    parts = zip(("predicting", "read back"), entries, strict=False)
    rows = [
        {"reading": name, "rho": rho, "p": p, "p_shifts": q, "low": rho - 0.1, "high": rho + 0.1} for name, (rho, p, q) in parts
    ]
    by_p = {"mode": "think", "quantity": "pull", "against": "p_true", "scope": "tokens", "rho": -0.9, "n": 30}
    return {"pull_links": pd.DataFrame(rows).assign(mode="think", n=30), "pressure": pd.DataFrame([by_p])}


@pytest.mark.parametrize(
    ("tables", "expected", "p"),
    [
        (links((0.2, 0.002, 0.004), (0.0, 0.9, 0.9)), "supported", 0.008),
        (links((0.0, 0.9, 0.9), (0.2, 0.004, 0.002)), "supported", 0.008),
        (links((0.2, 0.002, 0.3), (0.2, 0.4, 0.001)), "not supported", 0.6),  # both ways of testing are needed
        (links((-0.2, 0.002, 0.002), (0.0, 0.9, 0.9)), "not supported", 0.004),
        (links((0.2, 0.002, 0.004)), "supported", 0.004),
        (links((-0.5, 0.0005, 0.0005), (0.2, 0.002, 0.004)), "not supported", 0.008),  # the readings oppose each other
        (links((-0.5, 0.0005, 0.3), (0.2, 0.002, 0.004)), "supported", 0.008),  # one of them not surely
    ],
)
def test_norms_must_follow_the_pull_beyond_shifted_ones(tables: Any, expected: str, p: float) -> None:
    claim = verdict(9, tables)
    assert claim["verdict"] == expected and claim["p"] == pytest.approx(p)
    assert "rho of pull and probability -0.90 (nearly so by construction)" in claim["measured"]


def test_a_small_p_of_a_claim_that_is_not_supported_is_explained() -> None:
    against = verdict(9, links((-0.2, 0.002, 0.002), (0.0, 0.9, 0.9)))
    assert against["p_adjusted"] < 0.05 and against["unmet"] == (
        "rho of pull and norm over 0 in one of the readings; rho of every reading not surely under 0 "
        "(p is two-sided: it is small for an effect against the claim too)"
    )
    weak = verdict(9, links((0.2, 0.2, 0.2), (0.0, 0.9, 0.9)))
    assert weak["unmet"] == "p of at most 0.05" and weak["verdict"] == "not supported"
    assert verdict(9, links((0.2, 0.002, 0.004)))["unmet"] == ""
    known = {"bound": bound(), "bound_given_tokens": bound(), "bound_control": sets(meets=0.06)}
    assert verdict(4, known)["unmet"] == "a control meets the rule as well"
    assert verdict(4, {**known, "bound": bound(p=np.nan)})["why"].startswith("there is no p-value, which takes more prompts")


def test_a_pull_whose_link_cant_be_measured_is_told() -> None:
    only = {"pressure": links((0.2, 0.1, 0.1))["pressure"]}
    claim = verdict(9, only, {"pull_links": "fewer than 8 prompts"})
    assert (
        claim["verdict"] == "can't be tested here" and claim["why"] == "fewer than 8 prompts" and "-0.90" in claim["measured"]
    )


def trend(**changed: dict[str, float]) -> pd.DataFrame:
    """Of each part, given nothing, length, and length and tokens; changed is by "part_given"."""
    fixed = {"rho": 0.5, "low": 0.3, "high": 0.7, "p": 0.001, "tolerance": 0.6, "tolerance_prompt": 0.8, "n": 40}
    parts = [(part, given) for part in PARTS for given in ("nothing", "length", "length and tokens")]
    entries = [
        {"layer": "late", "part": p, "given": g, **fixed, **changed.get(f"{p}_{g.removeprefix('length and ')}", {})}
        for p, g in parts
    ]
    return pd.DataFrame(entries)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "supported"),
        ({"direct_length": {"p": 0.9, "rho": -0.1}}, "supported"),  # the denominator need not grow
        ({"direct_tokens": {"p": np.nan, "rho": np.nan}}, "supported"),  # nor differ where types are known
        ({"ratio_nothing": {"p": 0.2}}, "not supported"),
        ({"ratio_length": {"p": 0.2}}, "not supported"),
        ({"thinking_length": {"p": 0.2}}, "not supported"),  # direct answers get quieter
        ({"thinking_length": {"rho": -0.5}}, "not supported"),
        ({"thinking_tokens": {"p": 0.2}}, "not supported"),  # harder problems use louder types
        ({"ratio_tokens": {"rho": -0.5}}, "not supported"),
        ({"difference_nothing": {"p": 0.2}}, "supported"),
        ({"difference_length": {"p": 0.2}}, "not supported"),  # both modes get louder by the same
        ({"difference_tokens": {"rho": -0.5}}, "not supported"),
    ],
)
def test_difficulty_must_survive_length_and_tokens_and_be_of_the_numerator(changed: Any, expected: str) -> None:
    claim = verdict(14, {"trend": trend(**changed)})
    assert claim["verdict"] == expected and "of its parts: thinking 0.50, direct" in claim["measured"]
    assert "given the lengths of prompt and responses: ratio 0.50" in claim["control"]
    assert "; given lengths, token types and positions: ratio" in claim["control"]


NONE = {"p": np.nan, "rho": np.nan}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"ratio_length": {**NONE, "tolerance": 0.04}},
            "level and lengths of prompt and responses go together: they leave 4% of the level's variance; "
            "give levels whose lengths overlap",
        ),
        (
            {"ratio_length": {**NONE, "tolerance": 0.0, "tolerance_prompt": 0.02}},
            "level and length of the prompt go together: it leaves 2% of the level's variance; "
            "give levels whose prompts are of like lengths",
        ),
        (
            {"thinking_tokens": {**NONE, "tolerance": 0.07}},
            "level and lengths, token types and positions go together: they leave 7% of the level's variance; "
            "give levels whose lengths and words overlap",
        ),
        (
            {"thinking_tokens": NONE},
            "given lengths, token types and positions, nothing is left of the norms of thinking",
        ),
    ],
)
def test_a_level_that_goes_with_what_is_held_fixed_cant_be_tested(changed: Any, why: str) -> None:
    claim = verdict(14, {"trend": trend(**changed)})
    assert (claim["verdict"], claim["why"]) == ("can't be tested here", why) and claim["control"].endswith(": not defined")


def families(**changed: dict[str, float]) -> pd.DataFrame:
    """Of each predictor."""
    accuracy = {"profile": 0.8, "rest": 0.7, "spike": 0.4, "length": 0.3, "tokens": 0.5, "prompt": 0.4, "all": 0.6}
    fixed = {"low": 0.2, "high": 0.9, "chance": 0.25, "p": 0.001, "least_p": 0.0001, "n": 80}
    return pd.DataFrame([{"predictor": k, "accuracy": x, **fixed, **changed.get(k, {})} for k, x in accuracy.items()])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "supported"),
        ({"tokens": {"p": 0.2}}, "not supported"),
        ({"prompt": {"p": 0.2}}, "not supported"),  # positions in the sequence tell it as well
        ({"all": {"accuracy": 0.9}}, "not supported"),
        ({"rest": {"p": 0.3}}, "not supported"),  # types, positions and lengths are all that norms tell
    ],
)
def test_norms_must_tell_the_family_beyond_lengths_and_tokens(changed: Any, expected: str) -> None:
    claim = verdict(13, {"families": families(**changed)})
    assert claim["verdict"] == expected and "from the length of the prompt 40% [20%, 90%]" in claim["control"]


@pytest.mark.parametrize(
    ("names", "told", "shared"),
    [
        (["tokens", "all"], "the tokens of the response alone tell", "words"),
        (["prompt", "all"], "the length of the prompt alone tells", "lengths"),
        (["all"], "lengths and tokens together tell", "words and lengths"),
    ],
)
def test_families_that_a_control_tells_cant_be_tested(names: list[str], told: str, shared: str) -> None:
    claim = verdict(13, {"families": families(**{name: {"least_p": 0.06, "accuracy": 0.95} for name in names})})
    why = f"{told} nearly every family: no norm could do better; give families that share {shared}"
    assert (claim["verdict"], claim["why"]) == ("can't be tested here", why)


def test_tables_that_lack_a_control_are_told() -> None:
    table, every = families(), trend()
    claim = verdict(13, {"families": table[table["predictor"] != "prompt"]})
    assert claim["verdict"] == "can't be tested here" and "lacks the controls prompt" in claim["why"]
    for lacking in (every[every["given"] != "length and tokens"], every[every["part"] != "difference"]):
        claim = verdict(14, {"trend": lacking})
        assert claim["verdict"] == "can't be tested here" and "has no difference given length and tokens" in claim["why"]


def test_what_was_not_measured_says_why() -> None:
    notes = {
        "features": "no SAEs were given",
        "causal_outcomes": "a problem lacks an answer",
        "links": "no SAEs were given",
    }
    table = claims_table({}, notes).set_index("number")
    assert (table["verdict"] == "can't be tested here").all()
    assert table.loc[12, "why"] == "a problem lacks an answer"
    assert table.loc[3, "why"] == table.loc[1, "why"] == "no SAEs were given"
    assert table.loc[13, "why"] == "it was not measured"
    assert (table["why"] != "").all()


def swapped(*entries: tuple[int, float, float, float]) -> dict[str, pd.DataFrame]:
    """Of each layer: rho of late norm and importance, p and p_shifted."""
    frame = pd.DataFrame(entries, columns=["layer", "rho", "p", "p_shifted"])
    frame = frame.assign(low=frame["rho"] - 0.1, high=frame["rho"] + 0.1)
    constants = {"quantity": "late_norm", "given": "the rest", "shifted": 0.0, "n": 30, "n_tokens": 400}
    return {"importance": frame.assign(**constants)}


@pytest.mark.parametrize(
    ("tables", "expected", "p", "layer"),
    [
        (swapped((2, 0.2, 0.002, 0.004)), "supported", 0.004, 2),
        (swapped((2, 0.0, 0.9, 0.9), (5, 0.2, 0.002, 0.004)), "supported", 0.008, 5),  # times the number of layers
        (swapped((2, 0.2, 0.03, 0.03), (5, 0.1, 0.04, 0.2)), "not supported", 0.06, 2),
        (swapped((2, 0.1, 0.04, 0.04), (5, -0.2, 0.001, 0.001)), "not supported", 0.08, 2),
    ],
)
def test_the_answer_must_hang_on_loud_tokens_swapped_behind_one_layer(tables: Any, expected: str, p: float, layer: int) -> None:
    claim = verdict(16, tables)
    assert claim["verdict"] == expected and claim["p"] == pytest.approx(p)
    assert f"(400 tokens, swapped behind layer {layer})" in claim["measured"]
    assert ("p is times their number" in claim["why"]) == (len(tables["importance"]) > 1)
