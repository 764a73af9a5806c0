"""Thoughts beside other text, and levels at equal length: figures by hand, worlds without an effect, and planted ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from tests.planted import response
from tl_l2norm.analysis.thought_texts import difficulty_at_length, thought_text_table
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace

LAYERS = 4


def read(seed: int, *, n: int = 12, effect: float = 0.0, lacking: int = 0, only: str | None = None) -> list[Trace]:
    """Responses with all texts; `effect`: how much louder own ones are, of one family or all."""
    rng = np.random.default_rng([seed, 3])
    traces = []
    for i in range(n):
        k, offset = int(rng.integers(6, 40)), 10 * rng.exponential()
        for text in ("own", "filler", "shuffled", "another's"):
            if text == "another's" and i < lacking:
                continue
            norms = 100 + offset + 5 * rng.exponential(size=(LAYERS, k + 2)) + 3 * rng.exponential(size=(LAYERS, 1))
            family = "abc"[i % 3]
            norms[:, :k] += effect * (text == "own" and only in (None, family))
            labels = {"text": text, "family": family, "thought_from": 1, "thought_to": 1 + k, "answer_at": 2 + k}
            said = {"answer_logprob": -float(rng.exponential()), "says_answer": bool(rng.random() < 0.5)}
            words = 1000 * i + np.arange(k + 2)  # no two problems share a thought
            traces.append(response(norms, prompt=str(i), tokens=words, labels={**labels, **said}))
    return traces


def test_differences_are_those_of_means_over_the_thought_and_over_the_answer() -> None:
    traces = read(0, lacking=2)
    table = thought_text_table(traces, resamples=100).set_index(["text", "scope", "layer"])
    own = {t.labels["prompt"]: t for t in traces if t.labels["text"] == "own"}
    other = {t.labels["prompt"]: t for t in traces if t.labels["text"] == "another's"}
    assert len(other) == 10

    def mean(trace: Trace, start: str, stop: int | None) -> np.ndarray:
        return trace.l2_norms[:, int(trace.labels[start]) : stop].mean(1).numpy()

    thought = np.array([mean(own[p], "thought_from", -2) - mean(other[p], "thought_from", -2) for p in other])
    answer = np.array([mean(own[p], "answer_at", None) - mean(other[p], "answer_at", None) for p in other])
    for scope, truth in (("thought", thought), ("answer", answer)):
        for layer in range(LAYERS):
            entry = table.loc["another's", scope, layer]
            assert entry["difference"] == pytest.approx(truth[:, layer].mean(), rel=1e-4) and entry["n"] == 10
        late = table.loc["another's", scope, "late"]
        assert late["difference"] == pytest.approx(truth[:, -1].mean(), rel=1e-4)
    said = table.loc["filler", "response", "log p"]
    logprobs = {t: [x.labels["answer_logprob"] for x in traces if x.labels["text"] == t] for t in ("own", "filler")}
    assert said["own"] == pytest.approx(np.mean(logprobs["own"])) and said["n"] == 12 and said["p"] == said["p_max"]
    assert said["difference"] == pytest.approx(np.mean(logprobs["own"]) - np.mean(logprobs["filler"]))


def test_an_effect_is_found_and_nothing_where_there_is_none() -> None:
    """200 runs of 12: p_max is at most 0.05 in 2.5% (1.5% with the claim's sign), with an effect of 5 in 100%."""

    def hit(seed: int, effect: float) -> bool:
        table = thought_text_table(read(seed, effect=effect), seed=seed, resamples=400)
        own = table[(table["text"] == "another's") & (table["scope"] == "thought")]
        return bool((own["p_max"] <= 0.05).any())

    assert np.mean([hit(s, 0.0) for s in range(20)]) <= 3 / 20
    assert np.mean([hit(s, 5.0) for s in range(10)]) >= 9 / 10


def thoughts_of(traces: list[Trace], **options: int) -> pd.Series:
    """The entry of another's thoughts at the late layers."""
    return thought_text_table(traces, **options).set_index(["text", "scope", "layer"]).loc[("another's", "thought", "late")]


def test_one_family_alone_makes_no_finding() -> None:
    """200 runs of 24: with an effect in one family of three p is at most 0.05 in 88%, p_families in 3%; in all of them 99%."""
    entries = [thoughts_of(read(s, n=24, effect=15.0, only="a"), seed=s, resamples=400) for s in range(10)]
    assert np.mean([entry["p"] <= 0.05 for entry in entries]) >= 0.8
    assert np.mean([entry["p_families"] <= 0.05 for entry in entries]) <= 2 / 10
    entries = [thoughts_of(read(s, n=24, effect=8.0), seed=s, resamples=400) for s in range(10)]
    assert np.mean([entry["p_families"] <= 0.05 for entry in entries]) >= 9 / 10


def test_p_families_is_the_greatest_of_tables_without_one() -> None:
    traces = read(2, n=24, effect=1.0)
    parts = [thoughts_of([t for t in traces if t.labels["family"] != out], resamples=400) for out in "abc"]
    same = [part["p"] if part["difference"] > 0 else 1.0 for part in parts]
    assert thoughts_of(traces, resamples=400)["p_families"] == max(same)


def test_a_rest_of_the_other_sign_is_no_support() -> None:
    """Family a is so loud that the whole is positive, though the other two are negative for sure."""
    rest = [t for t in read(0, n=48, effect=-15.0) if t.labels["family"] != "a"]
    assert thoughts_of(rest, resamples=400)["p"] <= 0.05
    loud = [t for t in read(0, n=48, effect=80.0) if t.labels["family"] == "a"]
    entry = thoughts_of([*rest, *loud], resamples=400)
    assert entry["difference"] > 0 and entry["p_families"] == 1.0


@pytest.mark.parametrize(("n", "families"), [(10, "ab"), (24, "aaaaaaaaaaaaaaaaaaaaaaab")])
def test_too_few_to_leave_a_family_out(n: int, families: str) -> None:
    traces = [t.with_labels(family=families[int(str(t.labels["prompt"])) % len(families)]) for t in read(0, n=n)]
    entry = thoughts_of(traces, resamples=100)
    assert np.isnan(entry["p_families"]) and entry["p"] <= 1 and entry["n"] == n


def test_one_family_is_all_there_is() -> None:
    entry = thoughts_of([t.with_labels(family="a") for t in read(0, n=24)], resamples=100)
    assert entry["p_families"] == entry["p"]


def test_fewer_than_eight_of_a_text_have_means_alone() -> None:
    entry = thoughts_of(read(0, lacking=7), resamples=100)
    assert entry["n"] == 5 and entry["own"] - entry["replaced"] == pytest.approx(entry["difference"])
    assert entry[["low", "high", "p", "p_max", "p_families"]].isna().all()


def test_samples_without_the_other_text_do_not_count_on_the_own_side() -> None:
    """A loud second sample of each problem has no other of its length."""
    traces = [t.with_labels(response=int(str(t.labels["prompt"]))) for t in read(0)]
    second = [t.with_labels(response=100 + int(str(t.labels["prompt"]))) for t in read(1, effect=500.0)]
    kept = [t for t in second if t.labels["text"] != "another's"]
    assert thoughts_of([*traces, *kept]).equals(thoughts_of(traces))


def test_problems_that_share_a_thought_are_one_by_their_mean() -> None:
    """Of family a 0 and 3 share one, and so do 3 and 6 by a second sample; 9 shares it with 1, of another family."""
    texts = {("0", 0): 7, ("3", 0): 7, ("3", 1): 8, ("6", 0): 8, ("9", 0): 9, ("1", 0): 9}
    firsts = [(t, 0) for t in read(0) if t.labels["text"] in ("own", "filler")]
    seconds = [(t, 1) for t in read(1) if t.labels["text"] in ("own", "filler") and t.labels["prompt"] == "3"]
    traces = []
    for trace, sample in (*firsts, *seconds):
        prompt = str(trace.labels["prompt"])
        if trace.labels["text"] == "own" and (prompt, sample) in texts:
            words, norms = np.full(7, texts[prompt, sample]), trace.l2_norms[:, 1:8].double().numpy()
            labels = {**trace.labels, "thought_to": 6, "answer_at": 7}
            trace = response(norms, prompt=prompt, tokens=words, labels=labels)
        traces.append(trace.with_labels(response=f"{prompt}/{sample}"))
    entry = thought_text_table(traces, resamples=100).set_index(["scope", "layer"]).loc[("thought", 0)]
    differences: dict[str, list[float]] = {}
    means = {
        (t.labels["text"], t.labels["response"]): float(t.l2_norms[0, 1 : int(t.labels["thought_to"])].mean()) for t in traces
    }
    for text, sample in means:
        if text == "own":
            differences.setdefault(str(sample).split("/")[0], []).append(means["own", sample] - means["filler", sample])
    problems = {prompt: float(np.mean(own)) for prompt, own in differences.items()}
    alone = [own for prompt, own in problems.items() if prompt not in ("0", "3", "6")]
    shared = float(np.mean([problems[prompt] for prompt in ("0", "3", "6")]))
    assert entry["n"] == len(alone) + 1 == 10
    assert entry["difference"] == pytest.approx(np.mean([shared, *alone]), rel=1e-4)


def test_what_can_not_be_compared() -> None:
    traces = read(0)
    with pytest.raises(ValueError, match="no 'own' thought"):
        thought_text_table([t for t in traces if t.labels["text"] != "own"])
    with pytest.raises(ValueError, match="7 problems"):
        thought_text_table([t for t in traces if int(str(t.labels["prompt"])) < 7])
    with pytest.raises(ValueError, match="lacks the label 'text'"):
        thought_text_table([response(np.ones((2, 3)), prompt="0")])


def problems(seed: int, *, n: int = 48, lengths: int = 4, effect: float = 0.0, by_length: float = 3.0) -> list[Trace]:
    """Harder problems are thought about longer, and longer thoughts are louder; levels differ within lengths."""
    rng = np.random.default_rng([seed, 4])
    traces = []
    for i in range(n):
        length = int(rng.integers(lengths))
        level = length + int(rng.integers(1, 4))
        mean = 100 + by_length * length + effect * level + 2 * rng.exponential() + 10 * (i % 2)
        norms = mean + rng.exponential(size=(LAYERS, 6 + 2 * length))
        traces.append(response(norms, prompt=str(i), labels={"level": level, "family": "ab"[i % 2]}))
    return traces


def test_length_alone_makes_no_trend_and_levels_do() -> None:
    """200 runs of 48: p_max is at most 0.05 in 5% (3% with the claim's sign), with 2 a level in 99.5%."""

    def hit(seed: int, effect: float) -> bool:
        return bool((difficulty_at_length(problems(seed, effect=effect), seed=seed, resamples=400)["p_max"] <= 0.05).any())

    whole = problems(0)
    assert spearmanr([t.labels["level"] for t in whole], [float(t.l2_norms[:, 1:].mean()) for t in whole]).pvalue < 0.05
    assert np.mean([hit(s, 0.0) for s in range(20)]) <= 3 / 20
    assert np.mean([hit(s, 2.0) for s in range(10)]) >= 9 / 10


def test_rho_of_one_stratum_is_scipys() -> None:
    traces = [t.with_labels(family="a") for t in problems(1, lengths=1, n=20)]
    found = difficulty_at_length(traces, resamples=100).set_index("layer")
    levels = [t.labels["level"] for t in traces]
    for layer in range(LAYERS):
        truth = spearmanr(levels, [float(t.l2_norms[layer, 1:].mean()) for t in traces]).statistic
        assert found.loc[layer]["rho"] == pytest.approx(truth, abs=1e-6)
    assert found.loc["late"]["n"] == 20 and found.loc["late"]["strata"] == 1


def test_a_response_without_a_norm_is_left_out() -> None:
    traces = problems(0, effect=2.0)
    lacking = dataclasses.replace(traces[0], is_sink=torch.ones_like(traces[0].is_sink))
    table, rest = (difficulty_at_length(own, resamples=100) for own in ([lacking, *traces[1:]], traces[1:]))
    pd.testing.assert_frame_equal(table.drop(columns="n_all"), rest.drop(columns="n_all"))
    assert (table["n_all"] == 48).all() and table["rho"].notna().all()
    with pytest.raises(ValueError, match="the label 'level' of .* must be finite, got nan"):
        difficulty_at_length([traces[0].with_labels(level=float("nan")), *traces[1:]])


def test_where_length_follows_from_the_level_nothing_is_tested() -> None:
    traces = [t.with_labels(level=len(t)) for t in problems(0)]
    with pytest.raises(ValueError, match="0 of 48 problems share family and length"):
        difficulty_at_length(traces)
    assert difficulty_at_length(traces, width=50, resamples=50)["n"].iloc[0] == 48
    with pytest.raises(ValueError, match="several responses"):
        difficulty_at_length([*traces, traces[0]])


def labelled(trace: Trace, **labels: Any) -> Trace:
    """With labels of any kind, such as a file may hold."""
    return dataclasses.replace(trace, labels={**trace.labels, **labels})


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("answer_logprob", None, "the label 'answer_logprob' of .* must be a number, got None"),
        ("answer_logprob", -float("inf"), "the label 'answer_logprob' of .* must be finite, got -inf"),
        ("thought_from", None, "the label 'thought_from' of .* must be an integer"),
        ("thought_to", 999, "the label 'thought_to' of .* must be at most"),
        ("says_answer", "yes", "the label 'says_answer' of .* must be True or False, got 'yes'"),
    ],
)
def test_labels_that_are_no_figures_or_places_are_named(label: str, value: object, message: str) -> None:
    first, *rest = read(0)
    with pytest.raises(InputError, match=message):
        thought_text_table([labelled(first, **{label: value}), *rest])


@pytest.mark.parametrize("level", [None, "hard", float("inf"), True])
def test_a_level_is_a_number(level: object) -> None:
    first, *rest = problems(0)
    with pytest.raises(InputError, match="the label 'level' of .* must be "):
        difficulty_at_length([labelled(first, level=level), *rest])


def test_direct_answers_have_no_thought_of_a_length() -> None:
    traces = [t.with_labels(mode="direct" if i == 4 else "think") for i, t in enumerate(problems(0))]
    with pytest.raises(InputError, match="trace 4 says by its label that its mode is 'direct'.*give the thinking ones"):
        difficulty_at_length(traces)


def test_a_norm_that_is_nan_is_named() -> None:
    first, *rest = problems(0)
    norms = first.l2_norms.clone()
    norms[2, 3] = torch.nan
    with pytest.raises(InputError, match=r"a norm of Trace.*, number 5, is NaN \(layer 2, position 3\)"):
        difficulty_at_length([*rest[:5], dataclasses.replace(first, l2_norms=norms), *rest[5:]])
