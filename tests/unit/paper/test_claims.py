"""Verdicts on tables made by hand: the rule, its boundary, and what a missing table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.paper_tables import filled
from tl_l2norm.paper.claims import CLAIMS, adjust, claims_table


def verdict(number: int, tables: dict[str, pd.DataFrame], notes: dict[str, str] | None = None) -> Any:
    table = claims_table({name: filled(name, frame) for name, frame in tables.items()}, notes or {})
    assert table["number"].tolist() == [claim.number for claim in CLAIMS]
    return table.set_index("number").loc[number]


def shape(sharp: tuple[float, float, float], source: str = "trained SAE") -> dict[str, Any]:
    value, low, high = sharp
    spike = {"spike": 10.0, "spike_low": 5.0, "spike_high": 15.0}
    fixed = {"n": 20, "description": "made by hand", "source": source}
    return {"sharpness": value, "sharpness_low": low, "sharpness_high": high, **spike, **fixed}


def shapes(p: float = 0.001, knot: float = 9.0) -> pd.DataFrame:
    """Two straight pieces against three smooth curves, for thinking and for the difference; the worst p is of the last."""
    curves = [(curve, rival) for curve in ("think", "think minus direct") for rival in ("exponential", "power", "logistic")]
    table = pd.DataFrame(curves, columns=["curve", "rival"]).assign(p_prompts=0.0005, p_layers=0.0005, knot=knot)
    table.loc[5, "p_layers"] = p
    return table.assign(error=0.2, broken_error=0.1)


@pytest.mark.parametrize(
    ("own", "control", "p", "expected"),
    [
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), 0.01, "supported"),
        ((0.8, 0.7, 0.9), (0.6, 0.5, 0.75), 0.01, "uninformative"),  # the control's interval reaches into ours
        ((0.55, 0.45, 0.65), (0.3, 0.2, 0.4), 0.01, "not supported"),  # not surely over a half
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), 0.06, "not supported"),  # one smooth curve does as well, by layers
        ((0.8, 0.7, 0.9), (np.nan, np.nan, np.nan), 0.01, "supported"),  # a control without a rise
    ],
)
def test_features_must_spike_in_two_pieces_more_than_every_control(own: Any, control: Any, p: float, expected: str) -> None:
    dynamics = pd.DataFrame([shape(own), shape(control, "untrained SAE")])
    claim = verdict(1, {"feature_dynamics": dynamics, "feature_shapes": shapes(p)})
    assert claim["verdict"] == expected and claim["n"] == 20 and claim["p"] == p
    shown = "untrained SAE {:.0%} [{:.0%}, {:.0%}]".format(*control)
    assert claim["control"] == ("" if np.isnan(control[0]) else shown)


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


@pytest.mark.parametrize(
    ("entropy", "control", "p", "expected"),
    [
        ((0.3, 0.4, 0.5), (-0.1, 0.0, 0.1), 0.004, "supported"),
        ((-0.75, -0.4, -0.3), (-0.1, 0.0, 0.1), 0.004, "not supported"),  # an entropy follows as closely, downwards
        ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.004, "uninformative"),  # the untrained SAE's does too
        ((0.3, 0.4, 0.5), (-0.1, 0.0, 0.1), 0.2, "not supported"),  # random sets of latents reach that far
    ],
)
def test_the_norm_must_follow_the_share_beyond_entropies_random_sets_and_controls(
    entropy: Any, control: Any, p: float, expected: str
) -> None:
    entries = [linked("trained SAE", "l2_norm", 0.7, 0.8, 0.9, p), linked("trained SAE", "output_entropy", *entropy)]
    entries += [linked("trained SAE", "hidden_entropy", 0.0, 0.1, 0.2), linked("untrained SAE", "l2_norm", *control)]
    claim = verdict(3, {"links": pd.DataFrame(entries)})
    assert claim["verdict"] == expected
    assert f"best entropy (output_entropy) {entropy[1]:.2f}" in claim["measured"] and "84.1" in claim["paper"]


def test_thinking_tokens_must_be_louder_than_their_likes() -> None:
    kinds = pd.DataFrame({"kind": ["thinking", "direct"], "among_top": [0.5, 0.1], "overall": [0.3, 0.2], "n": 12})
    kinds["excess"] = kinds["among_top"] - kinds["overall"]
    for effect, p, expected in ((0.2, 0.01, "supported"), (0.2, 0.2, "not supported"), (-0.2, 0.01, "not supported")):
        table = pd.DataFrame([{"effect": effect, "low": effect - 0.1, "high": effect + 0.1, "p": p}])
        assert verdict(10, {"high_norm_tokens": kinds, "top_effects": table})["verdict"] == expected


def test_the_primary_endpoint_is_judged_alone_and_the_others_by_holm() -> None:
    """Holm by hand: sorted 0.01, 0.02, 0.04 become 3 x 0.01, 2 x 0.02, 0.04, each at least the one before."""
    adjusted = adjust([0, 1, 2, 3, 4], [0.04, 0.04, 0.01, 0.02, float("nan")])
    assert adjusted[:4] == pytest.approx([0.04, 0.04, 0.03, 0.04]) and np.isnan(adjusted[4])


def bound(premise: list[float]) -> pd.DataFrame:
    n = [round(100 * p) for p in premise]
    fixed = {"premise": premise, "premise_low": [p - 0.02 for p in premise], "n_premise": n, "n": 100}
    return pd.DataFrame({"layer": range(len(premise)), **fixed, "c1": 0.5, "c2": 2.0, "r2": 0.4})


def test_the_theorem_needs_its_premise_at_every_layer() -> None:
    assert verdict(4, {"bound": bound([1.0, 0.97])})["verdict"] == "supported"
    failed = verdict(4, {"bound": bound([1.0, 0.0])})
    assert failed["verdict"] == "not supported" and "premise by layer 0% to 100%" in failed["interval"]


def assumption(holds: list[str], control: float = 0.5) -> pd.DataFrame:
    fixed = {"assumption": "A4", "statement": "overlap", "bound": 0.03, "value": 0.01, "low": 0.0, "high": 0.02, "n": 12}
    return pd.DataFrame({"layer": range(len(holds)), "holds": holds, "control": control, "control_name": "shuffled", **fixed})


def test_an_assumption_must_hold_at_every_layer_and_says_when_its_control_does_too() -> None:
    assert verdict(8, {"assumptions": assumption(["holds", "holds"])})["verdict"] == "supported"
    assert verdict(8, {"assumptions": assumption(["holds", "undecided"])})["verdict"] == "not supported"
    assert "says little" not in verdict(8, {"assumptions": assumption(["holds"])})["why"]
    assert "says little" in verdict(8, {"assumptions": assumption(["holds"], control=0.01)})["why"]


def arms(
    own: float, paired: float, random: float, *, p: float = 1e-3, p_margin: float = 1e-3, dose: float = 1.0, high: float = -0.5
) -> dict[str, pd.DataFrame]:
    """Differences over all thresholds, nearly; under nothing 80% are right."""
    pairs = {("paired", "random"): own, ("paired", "none"): paired, ("random", "none"): random, ("high", "none"): high}
    fixed = {"quantile": np.nan, "low": -0.6, "high": 0.1, "p": p, "p_margin": p_margin, "dose": dose, "n": 50, "thresholds": 2}
    counts = {"positions": 9.0, "against_positions": 9.0 * dose, "events": 20.0, "against_events": 20.0 * dose}
    entries = [{"arm": a, "against": b, "difference": d, **fixed, **counts} for (a, b), d in pairs.items()]
    one = {**entries[0], "quantile": 0.8, "difference": 0.5}
    causal = pd.DataFrame({"arm": ["none", "high"], "accuracy": [0.8, 0.3]})
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
    ],
)
def test_norms_must_follow_the_pull_beyond_shifted_ones(tables: Any, expected: str, p: float) -> None:
    claim = verdict(9, tables)
    assert claim["verdict"] == expected and claim["p"] == pytest.approx(p)
    assert "rho of pull and probability -0.90 (nearly so by construction)" in claim["measured"]


def test_a_pull_whose_link_cant_be_measured_is_told() -> None:
    only = {"pressure": links((0.2, 0.1, 0.1))["pressure"]}
    claim = verdict(9, only, {"pull_links": "fewer than 8 prompts"})
    assert (
        claim["verdict"] == "can't be tested here" and claim["why"] == "fewer than 8 prompts" and "-0.90" in claim["measured"]
    )


def test_difficulty_must_survive_the_length_where_that_can_be_told() -> None:
    own = {"given": "nothing", "rho": 0.5, "low": 0.3, "high": 0.7, "p": 0.001, "n": 40}
    for low, expected in ((0.1, "supported"), (-0.1, "not supported")):
        table = pd.DataFrame([own, {**own, "given": "length", "rho": 0.2, "low": low}])
        assert verdict(14, {"trend": table})["verdict"] == expected
    same = pd.DataFrame([own, {**own, "given": "length", "rho": np.nan, "low": np.nan}])
    assert "level and length go together" in verdict(14, {"trend": same})["control"]


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
