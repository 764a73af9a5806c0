"""Arms on the tiny reasoner: shared seeds, planted verifiers, tuning, folders that are gone on from, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.experiments import kept_signals
from tl_l2norm.experiments.calibration import token_limit
from tl_l2norm.experiments.evaluation_files import require_same
from tl_l2norm.experiments.evaluation_results import Results
from tl_l2norm.experiments.settings import differences, settings_of
from tl_l2norm.recording.saved import Journal
from tl_l2norm.tasks.verifiers import extract_answer

HOT: dict[str, Any] = {"sampling": {"temperature": 2.2}}
QUIET: dict[str, Any] = {"max_new_tokens": 60, "progress": False}


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


@pytest.fixture(scope="module")
def problems() -> tuple[l2.Problem, ...]:
    return l2.make_mixture(4, families="compact", levels=[2, 4], split="test")


@pytest.fixture(scope="module")
def others() -> tuple[l2.Problem, ...]:
    return l2.make_mixture(4, families="compact", levels=[2, 4], split="train")


def alrr(traces: Any) -> l2.ALRR:
    return l2.ALRR(l2.quantile_thresholds(traces, 0.8), growth_eps=0.0, blowup=2.0)


def swap(traces: Any) -> l2.Suppression:
    return l2.Suppression(l2.quantile_thresholds(traces, 0.8), layers="late", how="swap")


ARMS = (
    l2.Arm("plain"),
    l2.Arm("ALRR", alrr),
    l2.Arm("swap", swap),
    l2.Arm("as many", lambda traces, log: dataclasses.replace(swap(traces), which="matched", match=log), match="swap"),
    l2.Arm("samples", n=3, **HOT),
    l2.Arm("norms", n=3, selection="norm_sum", control="samples", **HOT),
    l2.Arm("vote", n=3, selection="majority", control="samples", **HOT),
)


@pytest.fixture(scope="module")
def found(reasoner: Any, problems: Any, others: Any) -> Results:
    return l2.evaluate(reasoner, problems, ARMS, calibration=others, batch_size=5, **QUIET)


def same(one: Results, other: Results) -> None:
    """To the last bit, but for the clock."""
    pd.testing.assert_frame_equal(*(r.outcomes.drop(columns="seconds") for r in (one, other)), check_exact=True)
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame(), check_exact=True)
    pd.testing.assert_frame_equal(*(r.costs().drop(columns="seconds") for r in (one, other)), check_exact=True)
    pd.testing.assert_frame_equal(one.decisions, other.decisions)
    assert one.notes == other.notes


def test_outcomes_are_those_of_generate_and_is_correct(reasoner: Any, problems: Any, others: Any, found: Results) -> None:
    ordered = sorted(problems, key=lambda problem: problem.id)
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in ordered]
    traces = [r.trace for r in l2.run_modes(reasoner, sorted(others, key=lambda p: p.id), modes="think", **QUIET)]
    for name, acts in (("plain", ()), ("ALRR", alrr(traces))):
        out = l2.generate(reasoner, prompts, interventions=acts, **QUIET)
        mine = found.outcomes[found.outcomes["arm"] == name]
        assert mine["prompt"].tolist() == [problem.id for problem in ordered]
        assert mine["tokens"].tolist() == [len(c.tokens) for c in out]
        assert mine["correct"].tolist() == [bool(l2.is_correct(p, c)) for p, c in zip(ordered, out, strict=True)]
    assert out.log is not None and mine["reruns"].sum() == out.events()["reruns"].sum() > 0
    assert (mine["layer_passes"] == 12 * mine["tokens"] + mine["reruns"]).all()
    counts = out.log.counts().set_index("decision")["n"]
    decided = found.decisions[found.decisions["arm"] == "ALRR"].set_index("decision")["n"]
    assert decided.to_dict() == {name: n for name, n in counts.items() if n or name == "live tokens"}


def test_samples_are_shared_by_those_who_choose_among_them(found: Results) -> None:
    by_arm = {arm: own.set_index(["prompt", "sample"])["correct"] for arm, own in found.outcomes.groupby("arm")}
    for arm in ("norms", "vote"):
        assert len(by_arm[arm]) == 4 and by_arm["samples"].loc[by_arm[arm].index].equals(by_arm[arm])
    costs = found.costs().set_index("arm")
    assert costs.loc["norms", "tokens"] == pytest.approx(3 * costs.loc["samples", "tokens"])
    table = found.to_frame().set_index(["arm", "against"])
    assert table.loc[("vote", "samples"), "test"] == "random choice" and table.loc[("vote", "plain"), "test"] == "exact McNemar"
    curve = found.curves.set_index(["arm", "responses"])["accuracy"]
    assert curve["vote", 1] == curve["norms", 1] == pytest.approx(by_arm["samples"].groupby("prompt").mean().mean())
    assert [n for _, n in curve.index] == [1, 2, 3] * 2 and curve["norms", 3] == by_arm["norms"].mean()


def test_accuracy_stands_against_the_share_that_arms_suppressed(found: Results) -> None:
    own = found.suppressed().set_index("arm")
    assert list(own["kind"]) == ["", "high, swap", "matched, swap"] and own.loc["plain", "share"] == 0
    n = found.decisions.set_index(["arm", "decision"])["n"]
    assert own.loc["swap", "share"] == n["swap", "suppressed"] / n["swap", "live tokens"] > 0
    assert own["accuracy"].equals(found.to_frame().drop_duplicates("arm").set_index("arm")["accuracy"][own.index])
    printed = " ".join(str(found).split())
    assert "accuracy by share of tokens and layers suppressed" in printed
    assert "accuracy of selecting among so many responses" in printed


def test_a_matched_arm_changes_as_many_tokens(found: Results) -> None:
    changed = found.decisions[found.decisions["fired"]].set_index("arm")["n"]
    assert 0.5 * changed["swap"] <= changed["as many"] <= changed["swap"]


def test_a_planted_verifier_that_rewards_high_norms_makes_selection_by_norm_win(reasoner: Any, problems: Any) -> None:
    many = l2.make_mixture(16, families="compact", levels=[2, 4], split="test")
    arms = [l2.Arm("samples"), l2.Arm("norms", selection="norm_sum"), l2.Arm("length", selection="shortest")]
    options: dict[str, Any] = {"n": 4, "temperature": 2.6, **QUIET}
    winners = _winners(reasoner, many, options["temperature"])
    planted = [dataclasses.replace(p, verify=lambda answer, own=winners[p.id]: answer == own) for p in many]
    table = l2.evaluate(reasoner, planted, arms, **options).to_frame().set_index("arm")
    assert table.loc["norms", "verdict"] == "helps" and table.loc["norms", "worse"] == 0
    assert table.loc["norms", "accuracy"] == np.mean([winner is not None for winner in winners.values()]) > 0.7
    assert table.loc["length", "verdict"] != "helps"


def _winners(reasoner: Any, problems: Any, temperature: float) -> dict[str, str | None]:
    """What that one of four responses answers whose late norms have the highest sum: by their traces, by hand."""
    winners = {}
    for problem, own in _drawn(reasoner, problems, temperature).items():
        sums = np.array([[_sum(c.trace, layer) for layer in (9, 10, 11)] for c in own])
        best = own[int(((sums - sums.mean(0)) / np.maximum(sums.std(0), 1e-9)).mean(1).argmax())]
        winners[problem.id] = extract_answer(problem, best)
    return winners


def _drawn(reasoner: Any, problems: Any, temperature: float) -> dict[l2.Problem, Any]:
    """Four responses to each problem, with the seeds of an evaluation."""
    keys = [f"0/think/{problem.id}/{i}" for problem in problems for i in range(4)]
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") for key in keys]
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in problems]
    out = l2.generate(reasoner, prompts, n=4, temperature=temperature, seed=seeds, **QUIET)
    return {problem: out[4 * i : 4 * i + 4] for i, problem in enumerate(problems)}


def _sum(trace: l2.Trace, layer: int) -> float:
    counted = trace.is_response & ~trace.is_sink[layer]
    return float(trace.l2_norms[layer][counted].double().sum())


def test_a_killed_run_ends_the_same_with_other_batches_and_problems_in_another_order(
    reasoner: Any, problems: Any, others: Any, found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    add, left = Journal.add, [0]

    def adds(self: Journal, entries: Any) -> None:
        add(self, entries)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    left[0] = 7
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", adds)
        with pytest.raises(Killed):
            l2.evaluate(reasoner, problems, ARMS, calibration=others, batch_size=5, out=tmp_path, **QUIET)
    before = (tmp_path / "responses.jsonl").read_bytes()
    turned = {"problems": problems[::-1], "calibration": others[::-1], "out": tmp_path}
    again = l2.evaluate(reasoner, arms=ARMS, batch_size=4, **turned, **QUIET)
    same(again, found)
    assert before and (tmp_path / "responses.jsonl").read_bytes().startswith(before)
    monkeypatch.setattr("tl_l2norm.experiments.evaluation_run.generate", lambda *_, **__: pytest.fail("asked again"))
    same(l2.evaluate(reasoner, problems, ARMS, calibration=others, out=tmp_path, **QUIET), found)
    same(Results.load(tmp_path / "results.json"), found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"n": 2, "temperature": 1.0}, r"n \(1 there, 2 here\), temperature"),
        ({"max_new_tokens": 9}, r"max_new_tokens \(8 there, 9 here\)"),
        ({"mode": "direct"}, r"mode \('think' there, 'direct' here\)"),
        ({"arms": [l2.Arm("plain"), l2.Arm("low", l2.Suppression({11: 400.0}))]}, r"arms.low.interventions.0.thresholds.*400"),
        ({"arms": [l2.Arm("plain"), l2.Arm("other")]}, "names.1"),
        ({"problems": slice(1, 3)}, r"problems.\w+ \(only there\), problems.\w+ \(only here\)"),
    ],
    ids=str,
)
def test_a_folder_of_another_evaluation_is_refused_by_what_differs(
    reasoner: Any, problems: Any, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], says: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "evaluation"
    given: dict[str, Any] = {"arms": [l2.Arm("plain"), l2.Arm("low", l2.Suppression({11: 500.0}))], "problems": slice(2)}
    given |= {"max_new_tokens": 8, "progress": False, "out": folder}
    for own in (given, given | options):
        asked = {**own, "problems": problems[own["problems"]]}
        if own is given:
            l2.evaluate(reasoner, **asked)
    kept = (folder / "responses.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"holds an evaluation with other settings: .*{says}"):
        l2.evaluate(reasoner, **asked)
    assert (folder / "responses.jsonl").read_bytes() == kept


def test_a_folder_whose_note_is_damaged_is_left_alone(tmp_path: Path) -> None:
    for content in ("[1]", '{"a', "5"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match="run.json is damaged: .*nothing was changed"):
            require_same(tmp_path, {"seed": 0})


def test_damaged_results_are_refused(found: Results, tmp_path: Path) -> None:
    whole = json.loads(found.save(tmp_path / "results.json").read_text())
    outcomes, file = whole["outcomes"], tmp_path / "other.json"
    damages: list[tuple[str, Any]] = [
        ("outcomes", 5),
        ("outcomes", {}),
        ("outcomes", outcomes | {"correct": ["maybe"] * len(outcomes["arm"])}),
        ("outcomes", outcomes | {"arm": []}),
        ("comparisons", 5),
        ("comparisons", [{}]),
        ("settings", []),
        ("settings", {}),
        ("seed", "x"),
        ("notes", 5),
        ("curves", {"arm": ["a"]}),
    ]
    for name, damage in damages:
        file.write_text(json.dumps(whole | {name: damage}))
        with pytest.raises(InputError, match="other.json is damaged"):
            Results.load(file)


def test_a_tuned_arm_is_not_tested_on_what_it_was_tuned_on(
    reasoner: Any, problems: Any, others: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wild, mild = l2.Suppression({3: 0.0}), l2.Suppression({3: 1e9})
    grid = [l2.Arm("wild", wild), l2.Arm("mild", mild), l2.Arm("ALRR", alrr)]
    with pytest.warns(UserWarning, match="'mild' is the best of these settings and changed nothing"):
        chosen = l2.tune(reasoner, others, (arm for arm in grid), max_new_tokens=60)
    assert chosen.name == "mild" and chosen.tried == 3
    assert "'mild' is the best of 3 settings on 4 problems" in capsys.readouterr().err
    assert chosen.calibrated_on == {problem.id for problem in others}
    plain = l2.Arm("plain")
    with pytest.raises(InputError, match="arm 'mild' was tuned on 1 of the 5 problems of the test"):
        l2.evaluate(reasoner, [*problems, others[2]], [plain, chosen], **QUIET)
    for changed in ({"family": "renamed"}, {"question": others[1].question + " "}):
        with pytest.raises(InputError, match="arm 'mild' was tuned on 1 of the 3 problems of the test"):
            l2.evaluate(reasoner, [*problems[:2], dataclasses.replace(others[1], **changed)], [plain, chosen], **QUIET)
    tested = l2.evaluate(reasoner, problems[:2], [plain, chosen], **QUIET)
    assert "'mild': the best of 3 settings that were tried on 4 other problems" in str(tested)
    assert tested.settings["arms"]["mild"]["calibrated_on"] == sorted(chosen.calibrated_on)
    assert "nothing was changed by 'mild'" in str(tested)


def test_who_sees_the_answers_is_not_chosen(reasoner: Any, others: Any) -> None:
    grid = [l2.Arm(score, selection=score, n=2, **HOT) for score in ("oracle", "majority")]
    with pytest.raises(InputError, match="'oracle' selects by the answers"):
        l2.tune(reasoner, others, grid, **QUIET)


def test_what_goes_wrong_in_a_function_is_said_with_the_arm() -> None:
    def raises(*_: Any) -> None:
        raise KeyError("boom")

    cases: tuple[tuple[Any, type[Exception], str], ...] = (
        (raises, KeyError, "in the function of arm 'a'"),
        (lambda *_: None, InputError, "arm 'a': its function returned nothing"),
        (lambda *_: l2.ALRR, InputError, "arm 'a': its function returned the class ALRR"),
        (lambda *_: l2.ALRR({11: -1.0}), InputError, "arm 'a': the threshold of layer 11"),
    )
    asks: tuple[Callable[[l2.Arm], Any], ...] = (
        lambda arm: arm.made_of([], ()),
        lambda arm: dataclasses.replace(arm, match="b").acts(),
    )
    for function, kind, says in cases:
        for ask in asks:
            with pytest.raises(kind) as caught:
                ask(l2.Arm("a", function))
            assert says in "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    with pytest.raises(InputError, match="arm 'a': the threshold of layer 11"):
        l2.Arm("a", selection="norm_sum", thresholds=lambda traces: {11: -1.0}).made_of([], ())  # type: ignore[arg-type]


def test_thresholds_of_the_test_are_refused(reasoner: Any, problems: Any) -> None:
    traces = [r.trace for r in l2.run_modes(reasoner, problems[:2], modes="think", **QUIET)]
    arms = [l2.Arm("plain"), l2.Arm("ALRR", alrr(traces))]
    with pytest.raises(InputError, match="has thresholds that were taken from responses to 2 of the 4 problems"):
        l2.evaluate(reasoner, problems, arms, **QUIET)
    l2.evaluate(reasoner, problems[2:4], arms, **QUIET)
    arms = [l2.Arm("plain"), l2.Arm("norms", selection="event_area", n=2, thresholds=l2.iqr_thresholds(traces), **HOT)]
    with pytest.raises(InputError, match="'norms' has thresholds that were taken"):
        l2.evaluate(reasoner, problems, arms, **QUIET)
    matched = l2.Arm("as many", lambda _, log: dataclasses.replace(swap(traces), which="matched", match=log), match="low")
    arms = [l2.Arm("plain"), l2.Arm("low", l2.Suppression({9: 300.0, 10: 300.0, 11: 300.0}, how="swap")), matched]
    with pytest.raises(InputError, match="'as many' has thresholds that were taken"):
        l2.evaluate(reasoner, problems, arms, **QUIET)


def test_what_an_arm_can_not_do_is_refused_before_any_is_asked(reasoner: Any, problems: Any, tmp_path: Path) -> None:
    late = {9: 1.0, 10: 1.0}
    for arm, says in (
        (l2.Arm("a", l2.ALRR({40: 5.0})), "arm 'a': .*layer 40"),
        (l2.Arm("a", max_new_tokens=100_000), "arm 'a': .*past the model's context"),
        (
            l2.Arm("a", selection="event_area", n=2, thresholds=late, **HOT),
            "arm 'a': its selection has no threshold for layers? 11",
        ),
    ):
        with pytest.raises(InputError, match=says):
            l2.evaluate(reasoner, problems[:2], [l2.Arm("plain"), arm], out=tmp_path, **QUIET)
        assert not (tmp_path / "run.json").exists() and not (tmp_path / "responses.jsonl").exists()
    source = l2.run_modes(reasoner, problems[2:3], modes="think", **QUIET)[0].trace
    foreign = dataclasses.replace(source, provenance=dataclasses.replace(source.provenance, dtype="bfloat16"))
    arm = l2.Arm("a", selection="event_area", n=2, thresholds=l2.iqr_thresholds(foreign), **HOT)
    with pytest.raises(InputError, match="arm 'a': the thresholds of its selection are of .*bfloat16.* but the model is"):
        l2.evaluate(reasoner, problems[:2], [l2.Arm("plain"), arm], out=tmp_path, **QUIET)
    assert not (tmp_path / "responses.jsonl").exists()
    renamed = dataclasses.replace(problems[0], family="renamed")
    with pytest.raises(InputError, match="1 problems of the calibration are in the test too"):
        l2.evaluate(reasoner, problems[:2], [l2.Arm("plain"), l2.Arm("b")], calibration=renamed, **QUIET)


def test_the_limit_is_that_of_the_calibrations_lengths(reasoner: Any, problems: Any, others: Any) -> None:
    arms = [l2.Arm("plain"), l2.Arm("nothing", l2.Suppression({11: 1e9}))]
    out = l2.evaluate(reasoner, problems[:2], arms, calibration=others, progress=False)
    lengths = [
        len(r.trace.tokens) - r.trace.prompt_len + 1 for r in l2.run_modes(reasoner, others, modes="think", progress=False)
    ]
    assert out.settings["max_new_tokens"] == 16 * int(np.ceil(4 * max(lengths) / 16))
    assert token_limit([10] * 99 + [90], 4096) == 16 and token_limit([10] * 97 + [90] * 3, 4096) == 144


def test_what_is_cut_off_is_wrong_and_said(reasoner: Any, problems: Any) -> None:
    always = [dataclasses.replace(p, verify=lambda _: True, answer=None) for p in problems[:4]]
    arms = [l2.Arm("short", max_new_tokens=3), l2.Arm("long")]
    out = l2.evaluate(reasoner, always, arms, mode="direct", max_new_tokens=30, progress=False)
    short = out.outcomes[out.outcomes["arm"] == "short"]
    assert not short.loc[short["cut_off"] == 1, "correct"].any()
    assert out.costs()["cut_off"].tolist()[1] == 0 and out.outcomes.loc[out.outcomes["arm"] == "long", "correct"].all()
    thinking = l2.evaluate(reasoner, always, [l2.Arm("short", max_new_tokens=3), l2.Arm("long")], **QUIET)
    assert "WARNING: responses that ran into the token limit count as wrong: 100% of 'short'" in str(thinking)


def test_who_is_cut_off_has_no_vote_and_who_has_seen_the_answers_is_not_tested(reasoner: Any, problems: Any) -> None:
    """At a limit that cuts the first sample just behind its right answer, another one has to be taken for it."""
    many = l2.make_mixture(16, families="compact", levels=[2], split="test")
    drawn = _drawn(reasoner, many, 2.2)
    for problem, own in drawn.items():
        limit = len(own[0].tokens) - 1
        ended = [c for c in own if len(c.tokens) <= limit]
        if ended and l2.is_correct(problem, own[0]) and all(l2.is_correct(problem, c) for c in ended):
            break
    else:
        pytest.fail("no problem whose first sample is right and longer than others that are")
    hot: dict[str, Any] = {"n": 4, "sampling": {"temperature": 2.2}}
    arms = [l2.Arm("samples", **hot), *(l2.Arm(score, selection=score, **hot) for score in ("majority", "oracle"))]
    out = l2.evaluate(reasoner, problem, arms, max_new_tokens=limit, progress=False)
    correct = out.outcomes.groupby("arm")["correct"]
    assert correct.sum()["samples"] == len(ended) < 4 and correct.sum()[["majority", "oracle"]].tolist() == [1, 1]
    table = out.to_frame().set_index("arm")
    assert table.loc["oracle", "verdict"] == "has seen the answers" and "one arm" in out.notes[0]


@pytest.mark.parametrize(
    ("arms", "options", "says"),
    [
        ([l2.Arm("a"), l2.Arm("a")], {}, "two arms are called 'a'"),
        ([l2.Arm("a")], {}, "'a' is the one arm"),
        ([], {}, "no arms given"),
        ([l2.Arm("a"), l2.Arm("b")], {"n": 3}, "'a' takes 3 responses at temperature 0"),
        ([l2.Arm("a"), l2.Arm("b", n=3)], {}, "'b' takes 3 responses at temperature 0"),
        (
            [l2.Arm("a"), l2.Arm("b", selection="majority")],
            {"temperature": 1.0},
            "'b' selects by 'majority' among one response",
        ),
        ([l2.Arm("a"), l2.Arm("b", control="c")], {}, "'b': control='c' is no other arm"),
        ([l2.Arm("a"), l2.Arm("b", lambda traces, log: (), match="b")], {}, "'b': match='b' is no other arm"),
        (
            [l2.Arm("a"), l2.Arm("b", l2.ALRR({11: 5.0}), selection="think_at_n", n=2, **HOT)],
            {},
            "'b': 'think_at_n' reads responses again",
        ),
        (
            [l2.Arm("a", selection="oracle", n=2, **HOT), l2.Arm("b", **HOT)],
            {},
            "'a' is the baseline and selects by the answers",
        ),
        ([l2.Arm("a", control="b"), l2.Arm("b")], {}, "'a' is the baseline, of which nothing is claimed"),
        ([l2.Arm("b"), l2.Arm("baseline", claim="no harm", margin=0.1)], {}, "'baseline' is the baseline, of which nothing"),
        (
            [l2.Arm("a", n=2, **HOT), l2.Arm("b", lambda traces, log: (), match="a", n=3, **HOT)],
            {},
            "'b' takes 3 responses to each problem and 'a', to which it is matched, 2",
        ),
        ([l2.Arm("a"), l2.Arm("b", alrr)], {}, "'b' is made of a calibration's traces: give calibration="),
        ([l2.Arm("a"), l2.Arm("b")], {"problems": ()}, "no problems given"),
        ([l2.Arm("a"), l2.Arm("b")], {"problems": "twice"}, "some problems are the same"),
        ([l2.Arm("a"), l2.Arm("b")], {"problems": "open"}, "have no known answer"),
        ([l2.Arm("a"), l2.Arm("b")], {"calibration": "test"}, "1 problems of the calibration are in the test too"),
        ([l2.Arm("a"), l2.Arm("b")], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([l2.Arm("a"), l2.Arm("b")], {"n": 0}, "n must be at least 1"),
    ],
    ids=str,
)
def test_bad_input_is_refused_each_by_its_name(
    reasoner: Any, problems: Any, arms: Any, options: dict[str, Any], says: str
) -> None:
    asked = {
        "twice": [problems[0], problems[0]],
        "open": [dataclasses.replace(problems[0], answer=None)],
        "test": problems[:1],
    }
    given: dict[str, Any] = {"problems": problems[:2], **QUIET, **options}
    for name in ("problems", "calibration"):
        if isinstance(given.get(name), str):
            given[name] = asked[given[name]]
    with pytest.raises((InputError, Unmeasurable), match=says):
        l2.evaluate(reasoner, arms=arms, **given)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: l2.Arm(" "), "needs a name"),
        (lambda: l2.Arm("a", selection="norms"), "no score 'norms'"),
        (lambda: l2.Arm("a", selection="random"), "the same arm without selection is its expectation"),
        (lambda: l2.Arm("a", thresholds={11: 1.0}), "thresholds and layers are of a selection"),
        (lambda: l2.Arm("a", sampling={"temperatur": 1.0}), "'a': no option of sampling 'temperatur'.*temperature"),
        (lambda: l2.Arm("a", claim="no harm"), "needs a margin"),
        (lambda: l2.Arm("a", margin=0.1), "needs a margin"),
        (lambda: l2.Arm("a", claim="no harm", margin=1.5), "between 0 and 1"),
        (lambda: l2.Arm("a", l2.ALRR(l2.AdaptiveIQR())), "follows all that is generated"),
        (lambda: l2.Arm("a", l2.ALRR({1: 2.0}), match="b"), r"by a function \(traces, log\)"),
        (lambda: l2.Arm("a", n=0), "n must be at least 1"),
    ],
)
def test_what_is_no_arm_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_an_arm_says_what_it_is() -> None:
    arm = l2.Arm("a", alrr, n=4, control="b", calibrated_on=["x"], **HOT)
    told = "Arm('a', interventions=alrr, sampling={'temperature': 2.2}, n=4, control=('b',), calibrated_on=1 problems)"
    assert repr(arm) == told
    with pytest.raises(dataclasses.FrozenInstanceError):
        arm.n = 3  # type: ignore[misc]


def test_settings_tell_what_differs() -> None:
    one, other = (settings_of(l2.Arm("a", l2.ERSS({3: tau, 4: 9.0}, p=1.0)).settings()) for tau in (5.0, 6.0))
    assert list(differences(json.loads(json.dumps(one)), other)) == [
        "interventions.0.thresholds.values.3 (5.0 there, 6.0 here)"
    ]
    with pytest.raises(InputError, match="can't be told apart"):
        settings_of(lambda: 1)


def test_a_split_is_by_the_problem_alone(problems: Any) -> None:
    calibration, test = l2.experiments.split_problems(problems, share=0.4)
    fewer, _ = l2.experiments.split_problems(problems[::-1][:8], share=0.4)
    assert set(fewer) <= set(calibration) and set(calibration) | set(test) == set(problems) and calibration and test
    assert l2.experiments.split_problems(problems, share=0.4, seed=3) != (calibration, test)
    with pytest.raises(InputError, match="too few to split"):
        l2.experiments.split_problems(problems[:1])


def test_controls_by_a_log_spend_the_same_and_signals_of_others_select(reasoner: Any, problems: Any, others: Any) -> None:
    hot: dict[str, Any] = {"n": 3, **HOT}
    arms = [
        l2.Arm("samples", **hot),
        l2.Arm("ALRR", alrr, control="elsewhere"),
        l2.Arm("elsewhere", lambda traces, log: l2.interventions.Rerun(match=log), match="ALRR"),
        *(l2.Arm(score, selection=score, **hot) for score in ("confidence", "deep_thinking_ratio", "think_at_n")),
    ]
    out = l2.evaluate(reasoner, problems, arms, calibration=others, **QUIET)
    by_arm = {arm: own.set_index(["prompt", "sample"])["correct"] for arm, own in out.outcomes.groupby("arm")}
    assert out.costs().set_index("arm").loc[["ALRR", "elsewhere"], "reruns"].min() > 0
    reruns = out.outcomes.set_index(["arm", "prompt"])["reruns"]
    tokens = out.outcomes.set_index(["arm", "prompt"])["tokens"]
    alike = tokens["ALRR"] == tokens["elsewhere"]  # a response that is shorter has no room for all
    assert alike.any() and reruns["ALRR"][alike].equals(reruns["elsewhere"][alike])
    for score in ("confidence", "deep_thinking_ratio", "think_at_n"):
        assert by_arm["samples"].loc[by_arm[score].index].equals(by_arm[score])
    ordered = sorted(problems, key=lambda problem: problem.id)
    seeds = [
        int.from_bytes(hashlib.sha256(f"0/think/{p.id}/{i}".encode()).digest()[:6], "big") for p in ordered for i in range(3)
    ]
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in ordered]
    drawn = l2.generate(reasoner, prompts, n=3, temperature=2.2, seed=seeds, **QUIET)
    read = l2.recording.read_signals(reasoner, drawn, progress=False)
    for score in ("confidence", "deep_thinking_ratio"):
        chosen = out.outcomes.loc[out.outcomes["arm"] == score, "sample"]
        assert tuple(drawn[3 * i + own].text for i, own in enumerate(chosen)) == l2.select(read, by=score).texts


def changing(**fields: Any) -> list[l2.Arm]:
    """Selections by the change of states, and one that doesn't need them."""
    hot: dict[str, Any] = {"n": 3, **HOT}
    return [
        l2.Arm("samples", **hot),
        l2.Arm("net", selection="net_change", **hot),
        l2.Arm("beside it", selection="shortest", control="net", **hot),
        l2.Arm("vote", selection="majority", **hot, **fields),
    ]


def test_changes_go_from_segment_to_segment_of_the_length_that_is_given(reasoner: Any, problems: Any, others: Any) -> None:
    out = l2.evaluate(reasoner, problems, changing(), calibration=others, segment_tokens=3, **QUIET)
    assert out.settings["segment_tokens"] == 3 and not any("left out" in note for note in out.notes)
    ordered = sorted(problems, key=lambda problem: problem.id)
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in ordered]
    seeds = [
        int.from_bytes(hashlib.sha256(f"0/think/{p.id}/{i}".encode()).digest()[:6], "big") for p in ordered for i in range(3)
    ]
    drawn = l2.generate(reasoner, prompts, n=3, temperature=2.2, seed=seeds, **QUIET)
    read = l2.recording.read_signals(reasoner, drawn, segment_tokens=3, progress=False)
    chosen = out.outcomes.loc[out.outcomes["arm"] == "net", "sample"]
    assert tuple(drawn[3 * i + own].text for i, own in enumerate(chosen)) == l2.select(read, by="net_change").texts


def test_signals_that_were_read_are_not_read_again(
    reasoner: Any, problems: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind its first batch, a reading goes on with the second, and chooses as one that nothing ended."""
    arms = [*changing(), l2.Arm("deep", selection="deep_thinking_ratio", n=3, **HOT)]
    given: dict[str, Any] = {"problems": problems, "arms": arms, "segment_tokens": 3, "batch_size": 5, **QUIET}
    whole, read, n_read = l2.evaluate(reasoner, **given), kept_signals.read_signals, list[int]()

    def reads(model: Any, completions: Any, **options: Any) -> Any:
        if len(n_read) == 1:
            n_read.append(0)
            raise KeyboardInterrupt
        n_read.append(len(completions))
        return read(model, completions, **options)

    monkeypatch.setattr(kept_signals, "read_signals", reads)
    with pytest.raises(KeyboardInterrupt):
        l2.evaluate(reasoner, out=tmp_path, **given)
    same(l2.evaluate(reasoner, out=tmp_path, **given), whole)
    lines = (tmp_path / "responses.jsonl").read_text().splitlines()
    kept = [json.loads(line.split(" ", 1)[1])["value"] for line in lines]
    distinct = {(entry["problem"], *entry["tokens"]) for entry in kept}
    assert n_read[:2] == [5, 0] and 5 < sum(n_read) == len(distinct)
    same(l2.evaluate(reasoner, out=tmp_path, **given), whole)
    assert sum(n_read) == len(distinct)
    l2.evaluate(reasoner, out=tmp_path, **(given | {"segment_tokens": 4}))
    assert sum(n_read) == 2 * len(distinct)


def test_responses_of_the_same_tokens_are_read_once(reasoner: Any, problems: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in problems]
    alike = [*l2.generate(reasoner, prompts, n=3, temperature=0.01, **QUIET)]
    given: dict[str, Any] = {"segment_tokens": 3, "divergence": False, "batch_size": 2, "progress": False}
    truth = l2.recording.read_signals(reasoner, alike, **given)
    read, n_read = kept_signals.read_signals, list[int]()
    monkeypatch.setattr(
        kept_signals, "read_signals", lambda model, own, **how: n_read.append(len(own)) or read(model, own, **how)
    )
    own = kept_signals.read_kept(None, reasoner, alike, **given)
    assert n_read == [2, 2] and [(c.prompt_index, c.sample) for c in own] == [(i, k) for i in range(4) for k in range(3)]
    for one, other in zip(own, truth, strict=True):
        torch.testing.assert_close(one.signals.net_change, other.signals.net_change)
        torch.testing.assert_close(one.signals.mean_state, other.signals.mean_state)


def test_signals_are_kept_to_the_last_bit(reasoner: Any, problems: Any, tmp_path: Path) -> None:
    prompts = [l2.chat_prompt(reasoner.tokenizer, problem.question, mode="think") for problem in problems]
    drawn = l2.generate(reasoner, prompts, n=2, temperature=2.2, **QUIET)
    for options in ({"segment_tokens": 3, "divergence": True}, {"segment_tokens": 500, "divergence": False}):
        truth = l2.recording.read_signals(reasoner, drawn, batch_size=3, progress=False, **options)
        for _ in range(2):
            own = kept_signals.read_kept(tmp_path, reasoner, drawn, batch_size=3, progress=False, **options)
            for one, other in zip(own, truth, strict=True):
                assert repr(one.signals) == repr(other.signals) and one.text == other.text
                for name in ("divergence", "net_change", "cumulative_change", "aligned_change", "mean_state"):
                    values = [getattr(c.signals, name) for c in (one, other)]
                    assert values == [None, None] or torch.allclose(*values, rtol=0, atol=0, equal_nan=True)


def test_a_score_that_thoughts_are_too_short_for_is_refused_first_or_left_out(
    reasoner: Any, problems: Any, others: Any, tmp_path: Path
) -> None:
    """Before any response where a calibration tells; else behind them, and what they say of other arms is not lost."""
    with pytest.raises(InputError, match=r"goes from segment to segment of 500 tokens.* such as segment_tokens=\d"):
        l2.evaluate(reasoner, problems, changing(), calibration=others, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "responses.jsonl").exists()
    out = l2.evaluate(reasoner, problems, changing(), **QUIET)
    assert set(out.to_frame()["arm"]) == {"samples", "vote"} == set(out.outcomes["arm"])
    assert any("'net' is left out: 100% of the thoughts (or responses without one) have less" in note for note in out.notes)
    assert any("'beside it' is left out: 'net', its control, is" in note for note in out.notes)
    assert "'net' is left out" in str(out)
    alone = l2.evaluate(reasoner, problems, changing(control="net"), **QUIET)
    assert set(alone.outcomes["arm"]) == {"samples"} and "'vote' is left out: 'net', its control, is" in alone.notes
    with pytest.raises(Unmeasurable, match="'net': 100% of the thoughts"):
        l2.evaluate(reasoner, problems, changing()[1:2] + changing()[3:], **QUIET)
    with pytest.raises(InputError, match="segment_tokens must be at least 1"):
        l2.evaluate(reasoner, problems, changing(), segment_tokens=0, **QUIET)


def test_what_is_tuned_is_held_against_nothing(reasoner: Any, others: Any, tmp_path: Path) -> None:
    """Whichever comes first, what can't be scored is left out, and a control that can't takes nothing along."""
    arms = changing(control="net")
    for given in (arms[1:], [*arms[2:], arms[1]]):
        chosen = l2.tune(reasoner, others, given, **QUIET)
        assert chosen.name in {"beside it", "vote"} and chosen.control == ("net",) and chosen.tried == 3
    free = [dataclasses.replace(arm, control=()) for arm in arms[2:]]
    l2.tune(reasoner, others, free, out=tmp_path, **QUIET)
    with pytest.raises(InputError, match="other settings: .*tuned"):
        l2.evaluate(reasoner, others, free, out=tmp_path, **QUIET)


def test_curves_and_outcomes_judge_alike_where_a_verifier_says_nothing(reasoner: Any, problems: Any) -> None:
    def judged(answer: str) -> Any:
        return lambda text: True if text.strip() == answer else None

    told = [dataclasses.replace(p, answer=None, verify=judged(p.answer)) for p in problems]
    hot: dict[str, Any] = {"n": 3, "sampling": {"temperature": 1.5}}
    out = l2.evaluate(reasoner, told, [l2.Arm("samples", **hot), l2.Arm("first", selection="first", **hot)], **QUIET)
    mean = out.to_frame().set_index("arm")["accuracy"]["samples"]
    assert 0 < mean < 1 and set(out.curves["n"]) == {len(problems)}
    assert out.curves.set_index("responses")["accuracy"][1] == pytest.approx(mean)


def test_a_control_that_finds_too_few_tokens_is_told_of(reasoner: Any, problems: Any, others: Any) -> None:
    def most(traces: Any) -> l2.Suppression:
        return l2.Suppression(l2.quantile_thresholds(traces, 0.2), layers=[11], scale=0.9)

    arms = [
        l2.Arm("plain"),
        l2.Arm("most", most, control="as many"),
        l2.Arm("as many", lambda traces, log: dataclasses.replace(most(traces), which="matched", match=log), match="most"),
    ]
    out = l2.evaluate(reasoner, problems, arms, calibration=others, **QUIET)
    fired = out.decisions[out.decisions["fired"]].groupby("arm")["n"].sum()
    assert fired["as many"] < 0.9 * fired["most"]
    says = (
        f"'as many' changed {fired['as many']} tokens and layers where 'most', to which it is matched, changed {fired['most']}"
    )
    assert says in str(out)


@pytest.mark.parametrize("most", [60, 28], ids=["whole", "some cut off behind the answer"])
def test_responses_that_are_selected_among_are_those_of_sample_thinking(
    reasoner: Any, problems: tuple[l2.Problem, ...], most: int
) -> None:
    options: dict[str, Any] = {"n": 3, **QUIET, "max_new_tokens": most}
    arms = [l2.Arm("samples"), l2.Arm("norms", selection="norm_sum"), l2.Arm("greedy", n=1, sampling={"temperature": 0.0})]
    found = l2.evaluate(reasoner, problems, arms, temperature=1.5, **options)
    assert set(found.samples) == {"samples"}, "no norms are kept of an arm that nobody selects from; a selection has one each"
    truth = l2.experiments.sample_thinking(reasoner, sorted(problems, key=lambda p: p.id), temperature=1.5, **options)
    assert {result.finish_reason for result in truth} == ({"stop"} if most == 60 else {"stop", "length"})
    for own, other in zip(found.samples["samples"], truth, strict=True):
        assert (own.problem, own.response, own.answer, own.correct) == (
            other.problem,
            other.response,
            other.answer,
            other.correct,
        )
        assert own.trace.labels.keys() == other.trace.labels.keys() and own.trace.provenance == other.trace.provenance
        torch.testing.assert_close(own.trace.l2_norms, other.trace.l2_norms)
    mine, theirs = (l2.analysis.correctness_samples(results) for results in (found.samples["samples"], truth))
    pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5)
