"""Selection curves of completions made by hand; the statistics have their own tests in analysis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests.unit.experiments.test_selection import completion, signals
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.candidates import Unscorable
from tl_l2norm.experiments.curve import RULES, selection_curve
from tl_l2norm.experiments.scores import NORM_SCORES, SCORES
from tl_l2norm.experiments.selection import select
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.problems import Problem

PROBLEMS = [Problem(question=f"{i} + 0?", answer=str(i), family="sums") for i in range(24)]


def verified(planted: float, n: int = 4, seed: int = 0) -> list[Completion]:
    """Samples of `PROBLEMS`; where it is right, a response's norms are higher by so much, and wrong answers agree."""
    rng, rows = np.random.default_rng(seed), []
    for prompt, _ in enumerate(PROBLEMS):
        for sample in range(n):
            right = rng.random() < 0.35
            norms = rng.normal(10.0 + planted * right, 1.0, size=rng.integers(6, 12)).tolist()
            text = str(prompt) if right else "-1"
            rows.append(completion(norms, prompt=prompt, sample=sample, text=text))
    return rows


def test_with_a_planted_verifier_the_norm_score_wins() -> None:
    found = selection_curve(verified(5.0), problems=PROBLEMS, layers=[0])
    assert found.n == (1, 2, 4) and {"norm_sum_per_token"} <= set(found.better_than("random"))
    assert "norm_sum_per_token" in found.better_than("majority") and "shortest" not in found.better_than("random")
    best = found.signals.set_index("score").loc["norm_sum_per_token"]
    assert best["auc_low"] > 0.9
    curve = found.curve.set_index(["score", "n"])["accuracy"]
    assert curve["random", 1] == curve["random", 4] == curve["norm_sum_per_token", 1] < curve["norm_sum_per_token", 2]
    assert curve["norm_sum_per_token", 4] > 0.95 * curve["oracle", 4]
    assert not set(selection_curve(verified(0.0, seed=1), problems=PROBLEMS, layers=[0]).better_than("random")) & set(
        NORM_SCORES
    )


def test_at_all_samples_it_is_what_select_takes() -> None:
    rows = verified(1.0, seed=2)
    options: dict[str, Any] = {"problems": PROBLEMS, "layers": [0], "thresholds": {0: 1.0}}
    found = selection_curve(rows, by=["norm_sum", "shortest", "oracle", "late_area"], n=4, **options)
    table = found.curve.set_index("score")["accuracy"]
    for name in ("norm_sum", "late_area", "oracle"):  # no ties but among right ones
        best = select(rows, by=name, **options)
        right = [l2.is_correct(problem, one) for problem, one in zip(PROBLEMS, best, strict=True)]
        assert table[name] == pytest.approx(np.mean(right))
    assert list(found.curve["score"]) == ["norm_sum", "shortest", "oracle", "late_area", "random", "majority"]


def test_order_of_completions_changes_nothing() -> None:
    rows = verified(1.0, seed=3)
    one, other = (selection_curve(x, problems=PROBLEMS, layers=[0], seed=5) for x in (rows, rows[::-1]))
    for name in ("curve", "differences", "at_length", "signals"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    turned = [replace(one, prompt_index=23 - one.prompt_index) for one in rows]
    again = selection_curve(turned, problems=PROBLEMS[::-1], layers=[0], seed=5)
    for name in ("curve", "differences", "at_length", "signals"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(one, name), rtol=1e-9)
    assert one.signals.set_index("score").loc["random", "auc"] == 0.5


def test_every_score_has_a_rule_and_votes_vote() -> None:
    assert RULES.keys() == set(SCORES)
    assert {name for name, rule in RULES.items() if rule.votes} == {name for name in SCORES if "vote" in name} | {
        "majority",
        "think_at_n",
    }
    assert [name for name, rule in RULES.items() if rule.at_random] == ["random"]


def test_with_everything_recorded_nothing_is_left_out() -> None:
    rng = np.random.default_rng(0)
    rows = [
        completion(
            rng.normal(10, 1, 5).tolist(),
            prompt=p,
            sample=s,
            text=str(p if s % 2 else -1),
            signals=signals(rng.random(), settled=rng.integers(1, 5, 6).tolist(), state=[s % 2, rng.random()]),
            **{name: torch.tensor(rng.random(6)).float() for name in ("logprobs", "self_certainty", "token_confidence")},
        )
        for p in range(24)
        for s in range(4)
    ]
    found = selection_curve(rows, problems=PROBLEMS, layers=[0], window=3)
    assert not found.left_out and set(found.curve["score"]) == set(SCORES)
    assert {"probe"} <= set(found.better_than("random"))  # the state tells
    text = str(found)
    assert text.splitlines()[0] == "24 problems; accuracy of one response of n, all else among all samples; seed 0"
    assert max(map(len, text.splitlines())) <= 140 and "bottom_confidence_vote" in text and repr(found) == text
    assert "<table" in found._repr_html_() and found.to_frame()["score"].tolist() == list(SCORES)
    few = selection_curve(rows, problems=PROBLEMS, by=["think_at_n", "tail_confidence_vote"], n=[2])
    votes = [found.differences[found.differences["score"].isin(set(few.curve["score"]))], few.differences]
    one, other = (table.set_index(["reference", "score"])["difference"].sort_index() for table in votes)
    pd.testing.assert_series_equal(one, other)  # among all four samples, whatever n
    assert set(few.curve["score"]) == {"think_at_n", "tail_confidence_vote", "random", "majority"}


def test_problems_without_a_known_answer_do_not_count() -> None:
    unknown = [Problem(question="1 + 0?", answer=None, family="open") if i == 1 else one for i, one in enumerate(PROBLEMS)]
    found = selection_curve(verified(1.0), problems=unknown, by="shortest")
    assert set(found.curve["problems"]) == {23}


ROWS = verified(0.0, n=3)


@pytest.mark.parametrize(
    ("rows", "options", "kind", "message"),
    [
        (ROWS, {"n": (1, 8)}, Unscorable, "n = 8 is over the 3 responses to prompt 0: give n up to 3"),
        (ROWS, {"n": ()}, InputError, "n is how many responses one is selected from, 1 or more, got none"),
        (ROWS, {"n": 0}, InputError, "1 or more, got"),
        (ROWS, {"by": "norms"}, InputError, "no score 'norms'"),
        (ROWS, {"by": "confidence"}, Unscorable, "has no token_confidence: call generate with record=True"),
        (ROWS, {"by": "think_at_n"}, Unscorable, "has no signals: call read_signals"),
        (ROWS, {"by": "probe"}, Unscorable, "has no signals: call read_signals"),
        (ROWS, {"problems": None}, InputError, "a curve of accuracies needs problems="),
        (ROWS, {"problems": []}, InputError, "problem"),
        (ROWS, {"problems": PROBLEMS[:2]}, InputError, "2 problems for 24 prompts"),
        (ROWS[::3], {}, Unscorable, "there is one response to each prompt, nothing to select from"),
        ([], {}, InputError, "no completions given"),
    ],
)
def test_bad_input_says_what_to_do(rows: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        selection_curve(rows, **{"problems": PROBLEMS, **options})


def test_without_known_answers_nothing_is_right_or_wrong() -> None:
    unknown = [Problem(question=one.question, answer=None, family="open") for one in PROBLEMS]
    with pytest.raises(Unscorable, match="no problem has a known answer"):
        selection_curve(ROWS, problems=unknown)
    with pytest.raises(InputError, match="no reference 'first'"):
        selection_curve(ROWS, problems=PROBLEMS, by="first").better_than("first")
