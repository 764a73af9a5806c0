"""Verdicts on tables made by hand: the rule, its boundary, and what a missing table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.paper_tables import filled
from tl_l2norm.paper.claims import CLAIMS, claims_table


def verdict(number: int, tables: dict[str, pd.DataFrame], notes: dict[str, str] | None = None) -> Any:
    table = claims_table({name: filled(name, frame) for name, frame in tables.items()}, notes or {})
    assert table["number"].tolist() == [claim.number for claim in CLAIMS]
    return table.set_index("number").loc[number]


def shape(sharp: tuple[float, float, float], source: str = "trained SAE") -> dict[str, Any]:
    value, low, high = sharp
    spike = {"spike": 10.0, "spike_low": 5.0, "spike_high": 15.0}
    fixed = {"n": 20, "description": "made by hand", "source": source}
    return {"sharpness": value, "sharpness_low": low, "sharpness_high": high, **spike, **fixed}


@pytest.mark.parametrize(
    ("own", "control", "expected"),
    [
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), "supported"),
        ((0.8, 0.7, 0.9), (0.6, 0.5, 0.75), "not supported"),  # the control's interval reaches into ours
        ((0.55, 0.45, 0.65), (0.3, 0.2, 0.4), "not supported"),  # not surely over a half
        ((0.8, 0.7, 0.9), (np.nan, np.nan, np.nan), "supported"),  # a control without a rise
    ],
)
def test_features_must_spike_more_than_every_control(own: Any, control: Any, expected: str) -> None:
    claim = verdict(1, {"feature_dynamics": pd.DataFrame([shape(own), shape(control, "untrained SAE")])})
    assert claim["verdict"] == expected and claim["n"] == 20
    shown = "untrained SAE {:.0%} [{:.0%}, {:.0%}]".format(*control)
    assert claim["control"] == ("" if np.isnan(control[0]) else shown)


def test_without_a_rise_of_features_nothing_can_be_said() -> None:
    claim = verdict(1, {"feature_dynamics": pd.DataFrame([shape((np.nan,) * 3)])})
    assert claim["verdict"] == "can't be tested here" and "no reasoning features" in claim["why"]


def differences(low: list[float], source: str) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(low)), "low": low, "high": [x + 1 for x in low], "n": 30, "source": source})


@pytest.mark.parametrize(
    ("low", "sharp", "expected"),
    [([0.1, 0.2], 0.6, "supported"), ([0.1, -0.5], 0.6, "not supported"), ([0.1, 0.2], 0.4, "not supported")],
)
def test_the_norm_must_be_above_everywhere_and_spike(low: list[float], sharp: float, expected: str) -> None:
    table = pd.concat([differences(low, "as asked"), differences([-0.5, -0.5], "shuffled modes")])
    claim = verdict(2, {"differences": table, "dynamics": pd.DataFrame([shape((sharp + 0.1, sharp, 0.9))])})
    assert claim["verdict"] == expected
    assert claim["measured"].startswith(f"above at {sum(x > 0 for x in low)} of 2 layers, below at 0")
    assert claim["control"] == "shuffled modes: above at 0, below at 0"


def rho(source: str, quantity: str, low: float, value: float, high: float) -> dict[str, Any]:
    fixed = {"scope": "tokens", "layer": "late", "n": 25}
    return {"source": source, "quantity": quantity, "rho": value, "low": low, "high": high, **fixed}


@pytest.mark.parametrize(
    ("entropy", "control", "expected"),
    [
        ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3), "supported"),
        ((0.3, 0.4, 0.75), (0.1, 0.2, 0.3), "not supported"),
        ((0.3, 0.4, 0.5), (0.6, 0.7, 0.8), "not supported"),
    ],
)
def test_the_norm_must_follow_features_beyond_entropies_and_controls(entropy: Any, control: Any, expected: str) -> None:
    entries = [rho("trained SAE", "l2_norm", 0.7, 0.8, 0.9), rho("trained SAE", "output_entropy", *entropy)]
    entries += [rho("untrained SAE", "l2_norm", *control), rho("untrained SAE", "output_entropy", 0.9, 0.9, 0.9)]
    claim = verdict(3, {"correlations": pd.DataFrame(entries)})
    assert claim["verdict"] == expected
    assert "best entropy (output_entropy) 0.40" in claim["measured"] and "84.1" in claim["paper"]


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
        (arms(-0.2, -0.25, -0.05, dose=np.nan), "can't be tested here"),
    ],
)
def test_suppression_needs_a_loss_that_the_partners_of_high_tokens_dont_make(tables: Any, expected: str) -> None:
    claim = verdict(12, tables)
    assert claim["verdict"] == expected and claim["n"] == 50
    assert f"{tables['causal_differences']['difference'][1] * 100:+.1f} [-60, 10]" in claim["measured"]


def test_unlike_doses_are_told_and_a_model_that_knows_nothing_cant_be_broken() -> None:
    why = verdict(12, arms(-0.2, -0.25, -0.05, dose=0.8))["why"]
    assert "7.2 positions (16.0 positions and layers), high-norm ones 9.0 (20.0); needs 95%" in why
    tables = arms(-0.2, -0.25, -0.05)
    tables["causal"] = tables["causal"].assign(accuracy=0.1)
    assert "10% are right: there is little to break" in verdict(12, tables)["why"]


def links(*entries: tuple[float, float, float]) -> dict[str, pd.DataFrame]:
    """Of each reading rho, p by flips and by shifts."""
    parts = zip(("predicting", "read back"), entries, strict=False)
    rows = [{"reading": name, "rho": rho, "p": p, "p_shifts": q, "low": rho - 0.1, "high": rho + 0.1} for name, (rho, p, q) in parts]
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
    assert claim["verdict"] == "can't be tested here" and claim["why"] == "fewer than 8 prompts" and "-0.90" in claim["measured"]


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
        "correlations": "no SAEs were given",
    }
    table = claims_table({}, notes).set_index("number")
    assert (table["verdict"] == "can't be tested here").all()
    assert table.loc[12, "why"] == "a problem lacks an answer"
    assert table.loc[3, "why"] == table.loc[1, "why"] == "no SAEs were given"
    assert table.loc[13, "why"] == "it was not measured"
    assert (table["why"] != "").all()
