"""Against statsmodels, enumeration and pairs counted by hand."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.laws.test_correctness_laws import p_value, straight, world
from tests.planted import response
from tl_l2norm.analysis.conditional_logit import Groups, draw, fit, moments
from tl_l2norm.analysis.correctness import correctness_effect, critical_size
from tl_l2norm.analysis.sample_norms import GIVEN_TYPES, correctness_samples
from tl_l2norm.analysis.within_problems import MixedProblems, mixed, pair_counts
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.paper.finding import UNTESTED, Known
from tl_l2norm.paper.rules.thinking import correctness
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.results import Result

FEW: dict[str, Any] = {"resamples": 50}


def unequal_groups(seed: int = 0) -> tuple[Groups, np.ndarray]:
    """30 groups of 5 to 8 samples that have both outcomes, with three covariates."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 8, 3))
    held = np.arange(8) < rng.integers(5, 9, size=(60, 1))
    y = held * (rng.random((60, 8)) < 1 / (1 + np.exp(-x @ [0.5, -0.3, 0.0])))
    chosen = np.flatnonzero((y.sum(1) > 0) & (y.sum(1) < held.sum(1)))[:30]
    return Groups(y=y[chosen].astype(float), held=held[chosen]), x[chosen]


def test_coefficients_are_those_of_statsmodels() -> None:
    models = pytest.importorskip("statsmodels.discrete.conditional_models")

    groups, x = unequal_groups()
    number = np.repeat(np.arange(len(x)), 8)[groups.held.ravel()]
    model = models.ConditionalLogit(groups.y[groups.held], x[groups.held], groups=number)
    own, fitted = fit(groups, x[None], ridge=0.0)[0], model.fit(disp=0)
    np.testing.assert_allclose(model.score(own), 0, atol=1e-6)
    np.testing.assert_allclose(own, fitted.params, atol=1e-4)  # its own search stops earlier
    covariance = moments(groups, x @ own)[1]
    information = np.einsum("gsp,gst,gtq->pq", x, covariance, x)
    np.testing.assert_allclose(np.sqrt(np.diag(np.linalg.inv(information))), fitted.bse, rtol=1e-3)


def test_a_fit_without_some_groups_is_that_of_the_others() -> None:
    groups, x = unequal_groups()
    weights = np.ones((1, len(x)))
    weights[0, 20:] = 0
    alone = Groups(y=groups.y[:20], held=groups.held[:20])
    np.testing.assert_allclose(fit(groups, x[None], weights), fit(alone, x[None, :20]), atol=1e-7)


def test_mean_covariance_and_draws_are_those_of_all_arrangements() -> None:
    groups, x = unequal_groups()
    eta = x @ [1.0, 0.5, -0.5]
    mean, covariance = moments(groups, eta)
    drawn = draw(groups, eta, np.random.default_rng(0), 4000)
    assert (drawn.sum(2) == groups.k).all() and not drawn[:, ~groups.held].any()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.04)
    for g in (0, 7):
        n, k = int(groups.held[g].sum()), int(groups.k[g])
        ways = np.array([[j in chosen for j in range(n)] for chosen in itertools.combinations(range(n), k)], dtype=float)
        chance = np.exp(ways @ eta[g, :n])
        chance /= chance.sum()
        np.testing.assert_allclose(mean[g, :n], chance @ ways, atol=1e-10)
        np.testing.assert_allclose(covariance[g, :n, :n], np.cov(ways.T, aweights=chance, bias=True), atol=1e-10)


def test_pairs_are_counted_within_problems_and_ties_are_half() -> None:
    y, held = np.array([[1.0, 0, 0, 1], [1, 0, 0, 0]]), np.array([[True] * 4, [True, True, False, False]])
    score = np.array([[[3.0, 1, 3, 2], [1, 2, 9, 9]]])
    won, pairs = pair_counts(Groups(y=y, held=held), score)
    assert won.tolist() == [[2.5, 0.0]], "3 > 1, 3 = 3, 2 > 1, not 2 > 3; not 1 > 2"
    assert pairs.tolist() == [4.0, 1.0]


def test_an_offset_is_a_covariate_whose_coefficient_is_given() -> None:
    groups, x = unequal_groups()
    whole = fit(groups, x[None], ridge=0.0)
    rest = fit(groups, x[None, ..., :2], offset=x[None, ..., 2] * whole[0, 2], ridge=0.0)
    np.testing.assert_allclose(rest, whole[:, :2], atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_moments_are_exact_of_any_size_and_however_far_apart_the_odds_are(scale: float) -> None:
    rng, n, k = np.random.default_rng(0), 9, 4
    eta = scale * rng.normal(size=(1, 12))
    groups = Groups(y=(np.arange(12)[None] < k).astype(float), held=np.arange(12)[None] < n)
    ways = np.array([[j in chosen for j in range(n)] for chosen in itertools.combinations(range(n), k)], dtype=float)
    chance = np.exp(ways @ eta[0, :n] - (ways @ eta[0, :n]).max())
    mean, covariance = moments(groups, eta)
    np.testing.assert_allclose(mean[0, :n], chance @ ways / chance.sum(), atol=1e-13)
    np.testing.assert_allclose(covariance[0, :n, :n], np.cov(ways.T, aweights=chance, bias=True), atol=1e-13)
    assert not mean[0, n:].any() and not covariance[0, n:].any()


# Beta's interval and the share of the norm that covariates leave


def problems_of(seed: int = 0, **options: Any) -> MixedProblems:
    return MixedProblems.of(mixed(world(seed, **{"problems": 40, "layers": 2, **options})), ("late", 0), "prompt")


def test_the_interval_ends_where_the_test_begins_to_reject() -> None:
    problems, critical = problems_of(beta=0.5), np.array([2.0, 2.5])
    t, _ = problems.test(0, 1)
    own = problems.estimates(t, critical)
    np.testing.assert_allclose(problems._t(np.zeros(2))[0], t, atol=1e-6)
    np.testing.assert_allclose(problems._t(own["beta"])[0], 0, atol=0.01)
    np.testing.assert_allclose(problems._t(own["low"])[0], critical, atol=0.002)
    np.testing.assert_allclose(problems._t(own["high"])[0], -critical, atol=0.002)


def test_an_interval_of_a_test_that_never_rejects_has_no_ends() -> None:
    problems = problems_of()
    own = problems.estimates(problems.test(0, 1)[0], np.array([np.inf, 2.0]))
    assert (own["low"][0], own["high"][0]) == (-np.inf, np.inf) and np.isfinite([own["low"][1], own["high"][1]]).all()


@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("truth", [0.1, 0.2, 0.5])
def test_tolerance_is_the_true_share_however_few_the_samples(n: int, truth: float) -> None:
    slope = np.sqrt(0.98 * (1 / truth - 1))  # the noise has variance 0.98, the length 1
    shares = [
        problems.covariates.tolerance(problems.norm)[0]
        for problems in (problems_of(seed, n=n, on_norm=lambda d, mean: slope * d) for seed in range(12))
    ]
    assert np.mean(shares) == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_all_of_a_norm_is_left_that_has_nothing_to_do_with_length_and_log_probability(n: int) -> None:
    shares = [problems.covariates.tolerance(problems.norm)[0] for problems in (problems_of(seed, n=n) for seed in range(12))]
    assert np.mean(shares) > 0.8 and np.max(shares) <= 1, "it is cut at 1"


@pytest.mark.parametrize("n", [4, 16])
def test_the_unit_of_beta_is_the_standard_deviation_over_degrees_of_freedom(n: int) -> None:
    problems = problems_of(n=n)
    squares = (problems.norm**2).sum((1, 2))
    np.testing.assert_allclose(squares, problems.groups.held.sum() - len(problems.norm[0]))


def test_only_samples_that_lines_leave_pay_for_curves() -> None:
    plain = problems_of(on_correct=straight)
    few = problems_of(on_correct=straight, n=4)
    assert plain.covariates.shared.shape[-1] > 10 and few.covariates.shared.shape[-1] == 3, "squares alone"


# The table of samples


def result(
    norms: list[list[float]], *, correct: bool | None = True, reason: str = "stop", mode: Any = "think", **labels: Any
) -> Result:
    problem = Problem(question="What is 1 + 1?", answer="2", family="sums")
    trace = response(np.array(norms), prompt=problem.id, labels={"sample": 0, "log_prob": -0.5, **labels})
    return Result(
        problem=problem,
        mode=mode,
        prompt="",
        control="",
        response="",
        answer="",
        finish_reason=reason,
        correct=correct,
        direct=None,
        trace=trace,
    )


def test_samples_hold_mean_norms_of_response_tokens_without_the_last_block() -> None:
    table = correctness_samples([result([[float(layer), layer + 2.0] for layer in range(8)], correct=False, reason="length")])
    entry = table.iloc[0]
    assert (entry["late"], entry["late but the last"], entry[0]) == (7.5, 7.0, 1.0), "layers 6 and 7 are late; 7 is the last"
    assert (entry["length"], entry["log_prob"]) == (3, -0.5), "the last token was never read back"
    assert entry["cut_off"] and not entry["correct"] and entry["family"] == "sums"


def test_the_level_beside_token_types_is_read_off_tokens_of_the_same_response() -> None:
    """Types differ by 10 within responses; the second holds more of the loud one, the third is louder as a whole."""
    held = [([0, 1, 0, 1], 0.0), ([1, 1, 0, 1], 0.0), ([0, 1, 0, 0], 3.0)]
    results = []
    for sample, (ids, level) in enumerate(held):
        own = result([[50.0 + 10 * i + level for i in ids]], sample=sample)
        tokens = own.trace.tokens.clone()
        tokens[-4:] = torch.tensor(ids)
        results.append(dataclasses.replace(own, trace=dataclasses.replace(own.trace, tokens=tokens)))
    table = correctness_samples(results)
    np.testing.assert_allclose(table["late"], [55, 57.5, 55.5])
    np.testing.assert_allclose(table[GIVEN_TYPES] - table[GIVEN_TYPES][0], [0, 0, 3], atol=1e-6)
    assert np.average(table[GIVEN_TYPES]) == pytest.approx(np.mean(table["late"])), "about the mean over tokens"


def test_sinks_of_late_layers_are_in_no_level_and_a_response_of_nothing_else_has_none() -> None:
    results = [result([[5.0, 1e6], [5.0, 6.0]], sample=0), result([[7.0, 8.0], [7.0, 8.0]], sample=1)]
    for at, sinks in enumerate(([2], [1, 2])):
        mask = results[at].trace.is_sink.clone()
        mask[-1, sinks] = True
        results[at] = dataclasses.replace(results[at], trace=dataclasses.replace(results[at].trace, is_sink=mask))
    assert correctness_samples(results)[GIVEN_TYPES].isna().tolist() == [False, True]


def test_a_norm_that_is_nan_is_named_and_is_no_response_without_tokens() -> None:
    odd = result([[1.0, 2.0], [1.0, np.nan]])
    with pytest.raises(InputError, match=r"a norm of Trace.*, number 1, is NaN \(layer 1, position 2\)"):
        correctness_samples([result([[1.0, 2.0], [1.0, 2.0]]), odd])


def test_a_response_that_states_no_answer_counts_as_cut_off() -> None:
    """It is wrong by construction, and lacks the answer's tokens."""
    norms = [[1.0, 2.0]] * 8
    said = [("I wonder.", False), ("The answer is 3.", False), ("The answer is 2.", True)]
    results = [dataclasses.replace(result(norms, correct=c, sample=i), answer=text) for i, (text, c) in enumerate(said)]
    assert correctness_samples(results)["cut_off"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "direct"}, "of the mode 'direct'"),
        ({"correct": None}, "no known answer"),
        ({"log_prob": None}, None),
    ],
)
def test_samples_refuse_what_says_nothing_of_correct_thinking(options: dict[str, Any], message: str | None) -> None:
    if message:
        with pytest.raises(InputError, match=message):
            correctness_samples([result([[1.0, 2.0]], **options)])
    else:
        made = result([[1.0, 2.0]])
        del made.trace.labels["log_prob"]  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="lacks the label 'log_prob'.*sample_thinking"):
            correctness_samples([made])


# The effect


def test_the_table_has_both_kinds_of_responses_and_every_choice_of_layers() -> None:
    frame = world(0, problems=40, beta=1.0, limit=4.9)
    table = correctness_effect(frame, **FEW)
    assert table.groupby("responses", sort=False)["layer"].agg(list).to_dict() == {
        kind: ["late", GIVEN_TYPES, "late but the last", 0, 1, 2] for kind in ("all", "finished")
    }
    pd.testing.assert_frame_equal(table, correctness_effect(frame, **FEW))
    share = frame.groupby("prompt")["correct"].mean()
    entry = table.iloc[0]
    assert entry["n"] == ((share > 0) & (share < 1)).sum() and entry["n"] + entry["n_same"] == 40
    assert (entry["right"], entry["cut_off"]) == (frame["correct"].mean(), frame["cut_off"].mean())
    assert table["low"].le(table["beta"]).all() and table["beta"].le(table["high"]).all()
    np.testing.assert_allclose(table["auc_with"] - table["auc_without"], table["gain"])
    assert table["p_max"].isna().tolist() == [True, True, True, False, False, False] * 2


def test_a_unit_or_an_offset_of_a_problem_changes_nothing() -> None:
    frame = world(0, problems=20)
    other, columns = frame.copy(), ["late", GIVEN_TYPES, "late but the last", 0, 1, 2]
    other[columns] = frame[columns] * 7 + 100 * frame.groupby("prompt").ngroup().to_numpy()[:, None]
    first, second = (
        correctness_effect(f, **FEW).drop(columns=["layer", "responses", "verdict", "model"]) for f in (frame, other)
    )
    np.testing.assert_allclose(first.astype(float), second.astype(float), atol=1e-6)


def test_there_is_no_verdict_where_over_5_percent_are_cut_off_or_length_explains_the_norm() -> None:
    strong = world(0, beta=2.0)
    assert set(correctness_effect(strong, **FEW).query("layer == 'late'")["verdict"]) == {"supported"}
    cut = strong.assign(cut_off=np.arange(len(strong)) % 12 == 0)
    assert set(correctness_effect(cut, **FEW)["verdict"]) == {"can't be tested here"}
    length = strong.assign(late=np.log(strong["length"]))
    assert set(correctness_effect(length, **FEW).query("layer == 'late'")["verdict"]) == {"can't be tested here"}


def test_one_familys_effect_is_none_and_what_would_rest_on_one_is_no_verdict() -> None:
    frame = world(0, problems=40, beta=3.0)
    quiet, names = world(0, problems=40), ["late", GIVEN_TYPES, "late but the last"]
    ours = frame["family"] == "f0"
    frame.loc[~ours, [*names, 0, 1, 2, "correct"]] = quiet.loc[~ours, [*names, 0, 1, 2, "correct"]]
    table = correctness_effect(frame, resamples=199)
    assert table["p_families"].ge(table["p"] - 0.03).all() and table["p_families"].notna().all()
    assert table.loc[0, "p_families"] > 0.05 and table.loc[0, "verdict"] == "not supported"
    two = correctness_effect(frame.assign(family=np.where(ours, "a", "b")), **FEW)
    assert two["p_families"].isna().all() and set(two["verdict"]) == {"can't be tested here"}
    alone = correctness_effect(frame.assign(family="a"), **FEW)
    assert alone["p_families"].equals(alone["p"].rename("p_families"))
    with pytest.raises(ValueError, match="are of 2 families"):
        correctness_effect(frame.assign(family=np.arange(len(frame)) % 2), **FEW)


def test_types_must_leave_the_effect() -> None:
    strong = world(0, beta=2.0)
    rng = np.random.default_rng(1)
    noise = strong.assign(**{GIVEN_TYPES: rng.normal(size=len(strong))})
    table = correctness_effect(noise, **FEW).set_index("layer")
    assert set(table.loc[["late", GIVEN_TYPES], "verdict"]) == {"not supported"}, "both are needed of either"
    assert table.loc["late", "p"].max() <= 0.05 < table.loc[GIVEN_TYPES, "p"].min()


def test_families_may_be_clusters() -> None:
    frame = world(0, problems=60, beta=2.0)
    table = correctness_effect(frame, clusters="family", **FEW)
    assert table.iloc[0]["verdict"] == "supported"
    assert table.iloc[0]["beta"] == pytest.approx(correctness_effect(frame, **FEW).iloc[0]["beta"])


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (
            lambda f: f.groupby("prompt").head(3),
            {},
            Unmeasurable,
            "too few samples per problem: one has 3, at least 4.*give 8 samples",
        ),
        (lambda f: f.assign(correct=True), {}, Unmeasurable, "0 of 20 problems have right and wrong responses: at least 8"),
        (lambda f: f.assign(family=f["prompt"]), {"clusters": "family"}, InputError, "family 'p0' has one problem"),
        (lambda f: f.assign(family="one"), {"clusters": "family"}, Unmeasurable, "1 families with right and wrong.*at least 8"),
        (lambda f: pd.concat([f, f]), {}, InputError, "occurs twice"),
        (lambda f: f.drop(columns="log_prob"), {}, InputError, "lacks the columns ..log_prob"),
        (lambda f: f.assign(model=f["prompt"]), {}, InputError, "samples of several models"),
        (lambda f: f, {"resamples": 0}, InputError, "resamples"),
        (lambda f: f.assign(correct=f["correct"] / 2), {}, InputError, "correct is 0 or 1, False or True, got .*0.5"),
        (lambda f: f.assign(cut_off=2), {}, InputError, "cut_off is 0 or 1"),
        (lambda f: f.assign(family=f["family"].where(f["sample"] > 0)), {}, InputError, "family is missing in 20 samples"),
        (lambda f: f.assign(length=f["length"].where(f["sample"] > 0, 0)), {}, InputError, "length is a number of tokens"),
        (lambda f: f.assign(log_prob=-np.inf), {}, InputError, "log_prob is infinite"),
        (lambda f: f.assign(late=f["late"].where(f["sample"] > 0, np.inf)), {}, InputError, "late is infinite"),
        (lambda f: f.assign(**{"0": f[0]}), {}, InputError, "two columns of layer 0, by number and as text"),
    ],
)
def test_what_can_not_be_answered_is_refused(change: Any, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        correctness_effect(change(world(0, problems=20)), **{**FEW, **options})


@pytest.mark.parametrize(("seed", "options"), [(14, {"problems": 20, "n": 4}), (17, {"problems": 14, "n": 8, "log_prob": 4})])
def test_outcomes_that_are_nearly_separated_have_figures_and_no_end(seed: int, options: dict[str, Any]) -> None:
    entry = correctness_effect(world(seed, **options), seed=seed, resamples=99).iloc[0]
    assert np.isfinite(entry["beta"]) and entry["low"] == -np.inf and entry["high"] == np.inf and entry["p"] > 0.05


def test_responses_without_a_norm_count_among_those_that_were_cut_off() -> None:
    frame = world(0, problems=20)
    frame["cut_off"] = frame["sample"] >= 5
    lacking = frame.assign(
        log_prob=frame["log_prob"].where(~frame["cut_off"]), length=frame["length"].where(~frame["cut_off"], 0)
    )
    table = correctness_effect(lacking, **FEW)
    assert (table["cut_off"] == 3 / 8).all() and set(table["verdict"]) == {"can't be tested here"}
    assert table["right"].iloc[0] == pytest.approx(frame["correct"].mean())


@pytest.mark.parametrize(("seed", "problems", "n", "beta"), [(5369, 12, 6, 20.0), (5190, 10, 5, 1.0)])
def test_an_interval_holds_its_estimate_however_far_out(seed: int, problems: int, n: int, beta: float) -> None:
    """The norm all but separates right from wrong: an estimate past where the search for an end stops."""
    rng, size, number = np.random.default_rng(seed), problems * n, np.arange(problems * n)
    frame = pd.DataFrame({"prompt": number // n, "family": number // n % 4, "sample": number % n, "cut_off": False})
    frame["length"], frame["log_prob"] = rng.integers(20, 60, size), rng.normal(size=size) * 0.1 - 1
    own = rng.normal(size=size)
    for name in ("late", "late given types", "late but the last", 0):
        frame[name] = 100 + 5 * (own + 0.3 * rng.normal(size=size))
    frame["correct"] = beta * own + rng.logistic(size=size) > 0
    table = correctness_effect(frame.assign(model="by hand"), resamples=100)
    assert table["beta"].max() > 20 and ((table["low"] <= table["beta"]) & (table["beta"] <= table["high"])).all()


def test_a_table_read_from_csv_has_its_layers(tmp_path: Path) -> None:
    samples = world(0, problems=12, n=8)
    samples.to_csv(tmp_path / "samples.csv", index=False)
    tables = [correctness_effect(one, resamples=99) for one in (samples, pd.read_csv(tmp_path / "samples.csv"))]
    assert tables[0]["layer"].tolist() == tables[1]["layer"].tolist() and 0 in tables[1]["layer"].tolist()
    np.testing.assert_allclose(tables[0]["p"], tables[1]["p"])


def test_pandas_own_dtypes_a_category_and_an_index_of_prompts_change_nothing() -> None:
    samples = world(0, problems=12, layers=2)
    odd = samples.convert_dtypes().astype({"correct": "category"}).set_index("prompt", drop=False).assign(**{"²": 1})
    pd.testing.assert_frame_equal(correctness_effect(odd, **FEW), correctness_effect(samples, **FEW))


@pytest.mark.parametrize("seed", [51, 74, 138, 204, 226])
def test_p_is_at_most_5_percent_where_the_interval_leaves_out_0_and_nowhere_else(seed: int) -> None:
    """Of 12 problems x 4, such as where 0 is rejected and a beta of -8 isn't, or where t is just its critical value."""
    problems = MixedProblems.of(mixed(world(seed, problems=12, n=4, beta=1.0, layers=2)), ("late",), "prompt")
    t, drawn = problems.test(seed, 399)
    own = problems.estimates(t, critical := critical_size(np.abs(drawn)))
    assert t > critical if seed != 226 else t == pytest.approx(critical, abs=1e-12)
    assert own["low"] <= 0 < own["beta"] and own["evidence"] <= t
    assert p_value(drawn[:, 0], own["evidence"][0]) > 0.05


def test_where_no_effect_is_rejected_there_is_no_verdict() -> None:
    table = correctness_effect(world(74, problems=12, n=4, beta=1.0, layers=2), resamples=399)
    endless = np.isinf(table["low"]) & np.isinf(table["high"])
    assert endless[0] and set(table.loc[endless, "verdict"]) == {"can't be tested here"} and table["p"].notna().any()
    finding = correctness(Known({"correctness": table}, {}))
    assert finding.verdict(finding.p) == UNTESTED and "responses to 9 problems reject no effect, however large" in finding.why
