"""The whole analysis on the tiny reasoner: its tables, its verdicts, and going on from what was saved."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.saes import HAS_SAE_LENS
from tl_l2norm.analysis.pairing import pair_modes, token_weights
from tl_l2norm.core.errors import InputError, Unmeasurable, Unsupported
from tl_l2norm.experiments.modes import answer_at
from tl_l2norm.paper import readings, stages
from tl_l2norm.paper.study import CONTROLS, analyse
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.text.prompts import chat_prompt

N, FEW = 72, 24
"""Problems: for verdicts, and for what fewer show as well."""
OPTIONS: dict[str, Any] = {
    "quantiles": (0.8,),
    "control_states": 4096,
    "max_new_tokens": 96,
    "batch_size": 72,
    "sink_ratio": 20.0,
    "progress": False,
}


HERE = tuple(name for name in CONTROLS if HAS_SAE_LENS or name != "random-weight model")  # whose SAEs SAELens trains


def told_what_is_left_out() -> AbstractContextManager[Any]:
    return nullcontext() if HAS_SAE_LENS else pytest.warns(UserWarning, match="'random-weight model' is left out")


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


@pytest.fixture(scope="module")
def problems() -> tuple[Problem, ...]:
    return l2.make_mixture(N, families="compact", levels=[2, 4], split="test", seed=11)


@pytest.fixture(scope="module")
def saes() -> Any:
    return l2.load_saes("tiny-reasoner")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analysis")


@pytest.fixture(scope="module")
def analysis(reasoner: Any, saes: Any, problems: Any, folder: Path) -> Any:
    with told_what_is_left_out():
        return analyse(reasoner, saes, problems, save_to=folder, **OPTIONS)


@pytest.mark.slow
def test_every_claim_has_a_verdict_and_a_reason(analysis: Any) -> None:
    claims = analysis.claims()
    assert claims["number"].tolist() == list(range(18))
    words = {"supported", "not supported", "uninformative", "can't be tested here", "described"}
    assert set(claims["verdict"]) <= words and (claims.loc[claims["number"].between(5, 8), "verdict"] == "described").all()
    untested = claims[claims["verdict"] == "can't be tested here"]
    few, untold, elsewhere = {0, 1, 3, 4, 12, 13}, {2, 10, 14}, {11, 15}
    assert set(untested["number"]) <= few | untold | elsewhere, "too few; told by length; other runs"
    assert (claims["why"] != "").all()
    assert (claims.loc[~claims["number"].isin(untested["number"]), ["measured", "interval", "control"]] != "").all().all()
    assert "reasoning features spike" in repr(analysis).replace("\n", " ") and "tiny-reasoner" in repr(analysis)


@pytest.mark.slow
def test_every_table_says_how_many_prompts_which_seed_and_model(analysis: Any) -> None:
    of_one_prompt = {"bound_points", "pressure_tokens", "top_tokens", "causal_outcomes", "samples"}
    for name, table in analysis.tables.items():
        assert len(table) and {"seed", "model"} <= set(table.columns), name
        if name not in of_one_prompt:
            assert (table["n"].dropna() <= N).all(), name
    held_out = N - len(analysis.features["trained SAE"].chosen_on)
    for name in ("curves", "correlations", "bound"):
        assert (analysis.tables[name]["n"] <= held_out).all(), f"{name} is of problems that the features were not chosen on"


@pytest.mark.slow
def test_each_control_has_its_features_and_its_rows(analysis: Any, saes: Any) -> None:
    assert list(analysis.features) == ["trained SAE", *HERE]
    assert ("training SAEs needs SAELens" in analysis.notes.get("random-weight model", "")) != HAS_SAE_LENS
    trained, shuffled = analysis.features["trained SAE"], analysis.features["shuffled modes"]
    by_match = analysis.tables["features"].query("tokens == 'read'").groupby("match")[["found", "split_found"]].sum()
    assert by_match.loc["none", "found"] > 100, "thinking runs through many kinds of tokens, a direct answer is one"
    assert by_match.loc["none", "split_found"] > 0 == by_match.loc["count", "split_found"], "numbers of tokens alone find some"
    assert 0 < len(trained) == by_match.loc["count", "found"] < by_match.loc["none", "found"], "few, with 36 prompts"
    assert {layer: len(latents) for layer, latents in shuffled.latents.items()} == {
        layer: len(latents) for layer, latents in trained.latents.items()
    }
    assert len({features.chosen_on for features in analysis.features.values()}) == 1
    for name in ("curves", "feature_dynamics"):
        assert set(analysis.tables[name]["source"]) == set(analysis.features), name
    correlated = set(analysis.tables["correlations"]["source"])
    silent = {source for source in analysis.features if f"correlations, {source}" in analysis.notes}
    assert correlated | silent == set(analysis.features) and not correlated & silent and "trained SAE" in correlated
    assert all("no reasoning feature is active" in analysis.notes[f"correlations, {source}"] for source in silent)
    assert analysis.tables["correlations"].groupby("source")["rho"].count().gt(0).all(), "none is missing throughout"
    models_ = analysis.tables["curves"].groupby("source")["model"].first()
    assert models_["untrained SAE"] == "tiny-reasoner"
    assert not HAS_SAE_LENS or "random weights" in models_["random-weight model"]


@pytest.mark.slow
def test_norm_differences_are_those_of_the_responses(analysis: Any, reasoner: Any, problems: Any) -> None:
    """Against responses that are generated here and averaged with plain loops."""
    results = l2.run_modes(reasoner, problems, max_new_tokens=96, sink_ratio=20.0, batch_size=24, progress=False)
    means = {mode: [] for mode in ("think", "direct")}
    pairs = pair_modes(*([r.trace for r in results if r.mode == mode] for mode in means))
    for (pair,) in pairs.values():
        counted = token_weights(pair, "count", seed=0)  # as many of each
        for mode, trace, weights in zip(means, pair, counted, strict=True):
            keep = [i for i in range(trace.prompt_len, len(trace)) if weights[i] > 0 and not trace.is_sink[-1, i]]
            means[mode].append(float(np.mean([float(trace.l2_norms[-1, i]) for i in keep])))
    table = analysis.tables["differences"]
    last = table[(table["source"] == "as asked") & (table["layer"] == 11)].iloc[0]
    assert last["difference"] == pytest.approx(np.mean(means["think"]) - np.mean(means["direct"]), rel=1e-3)
    assert last["high"] < 0, "on this model thinking norms are lower in the last layer"


@pytest.mark.slow
def test_features_of_untrained_saes_are_never_taken_for_trained_ones(
    analysis: Any, reasoner: Any, saes: Any, problems: Any
) -> None:
    features = analysis.features["trained SAE"]
    prompt = chat_prompt(reasoner.tokenizer, "mod 10: 7A+5B*3")
    (trace,) = l2.collect(reasoner, [prompt], saes=l2.saes.untrained_saes(saes), labels=[{"prompt": "new"}], progress=False)
    with pytest.raises(ValueError, match="the features were found with .* the trace has those of .*untrained"):
        features.total(trace)


@pytest.mark.slow
def test_it_goes_on_from_what_was_saved(
    analysis: Any, reasoner: Any, saes: Any, problems: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be read off the model again")

    monkeypatch.setattr("tl_l2norm.recording.saved.collect", never)
    monkeypatch.setattr("tl_l2norm.experiments.modes.generate", never)
    monkeypatch.setattr("tl_l2norm.experiments.suppression.generate", never)
    with told_what_is_left_out():
        again = analyse(reasoner, saes, problems, save_to=folder, **OPTIONS)
    for name in ("differences", "correlations", "causal", "curves", "features"):
        pd.testing.assert_frame_equal(again.tables[name], analysis.tables[name], check_dtype=False)
    saved = pd.read_csv(folder / "tables" / "causal.csv")
    assert saved["accuracy"].tolist() == pytest.approx(analysis.tables["causal"]["accuracy"].tolist())


@pytest.mark.slow
def test_no_feature_is_a_result(
    reasoner: Any, saes: Any, problems: Any, folder: Path, analysis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if no latent fired more in thinking."""
    strict = functools.partial(stages.find_reasoning_features, min_effect=1e9)
    monkeypatch.setattr(stages, "find_reasoning_features", strict)
    monkeypatch.setattr(stages, "MATCHES", ("none", "answer"))
    options = {**OPTIONS, "controls": ("untrained SAE", "shuffled modes"), "quantiles": ()}
    none = analyse(reasoner, saes, problems, save_to=folder, **options)
    assert len(none.features["trained SAE"]) == 0 and "0 of" in repr(none.features["trained SAE"])
    claims = none.claims().set_index("number")
    for number in (1, 3, 4, 7, 8):
        assert claims.loc[number, "verdict"] == "can't be tested here" and "no reasoning feature" in claims.loc[number, "why"]
    assert claims.loc[6, "verdict"] == "described", "what needs no features is measured all the same"
    assert claims.loc[12, "why"] == "the causal test was left out (quantiles=())"


def test_without_saes_and_answers_the_rest_is_measured(reasoner: Any, problems: Any) -> None:
    open_ = [Problem(question=p.question, answer=None, family=p.family, level=2) for p in problems[:FEW]]
    analysis = analyse(reasoner, None, open_, **OPTIONS)
    claims = analysis.claims().set_index("number")
    for number in (1, 3, 4, 5, 6, 7, 8):
        assert (claims.loc[number, "verdict"], claims.loc[number, "why"]) == ("can't be tested here", "no SAEs were given")
    assert "known answers" in claims.loc[12, "why"] and "one level" in claims.loc[14, "why"]
    assert "known answer" in claims.loc[0, "why"] and "needed to tell mode" in claims.loc[2, "why"]
    assert "thinking above direct at" in claims.loc[2, "measured"] and claims.loc[10, "n"] == FEW
    facts = analysis.facts
    assert facts["controls"] == "shuffled modes", "the others are of SAEs"
    assert facts["thinking samples"] == facts["suppressed over the quantiles"] == "none", "no answer is known"
    assert facts["most tokens of a response"] == "96 thinking, 32 direct"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 7}, "7 problems: at least 8"),
        ({"controls": ("random weights",)}, "unknown controls"),
        ({"saes": "shifted"}, "doesn't fit: it is of blocks.3.hook_resid_post"),
        ({"saes": "one", "n": 15}, "15 problems: at least 16"),
        ({"samples": 2}, "samples must be at least 4"),
        ({"swapped_tokens": 7}, "swapped_tokens must be at least 8"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    reasoner: Any, problems: Any, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    monkeypatch.setattr(readings, "run_modes", lambda *_, **__: pytest.fail("asked in spite of bad input"))
    chosen = None
    if "saes" in change:
        own = request.getfixturevalue("saes")
        chosen = {4: own[3]} if change["saes"] == "shifted" else {3: own[3]}
    options = {**OPTIONS, **{name: value for name, value in change.items() if name not in ("saes", "n")}}
    with pytest.raises(ValueError, match=message):
        analyse(reasoner, chosen, problems[: change.get("n", N)], **options)


# What it is made of


def test_untrained_saes_have_the_shape_and_other_weights(saes: Any) -> None:
    state = torch.random.get_rng_state()
    blank, again, other = (l2.saes.untrained_saes({5: saes[5]}, seed=seed)[5] for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(blank) is type(saes[5]) and blank.W_dec.shape == saes[5].W_dec.shape
    assert torch.equal(blank.W_enc, again.W_enc) and not torch.equal(blank.W_enc, other.W_enc)
    assert not torch.allclose(blank.W_enc, saes[5].W_enc)
    assert not saes[5].cfg.metadata.note, "the SAE that was given is left as it is"


@pytest.mark.slow
def test_arms_of_the_causal_test_do_what_they_say(reasoner: Any, problems: Any) -> None:
    problems = problems[:FEW]
    prompts = [chat_prompt(reasoner.tokenizer, p.question) for p in problems]
    plain = l2.generate(reasoner, prompts, max_new_tokens=96, batch_size=24, sink_ratio=20.0, progress=False)
    options = {"max_new_tokens": 96, "batch_size": 24, "sink_ratio": 20.0, "progress": False}
    outcomes = l2.experiments.suppress_and_ask(reasoner, problems, plain.traces, quantiles=(0.8,), **options)
    once = dict.fromkeys(["none", "high", "low", "paired", "swap"], FEW)
    assert outcomes.groupby("arm").size().to_dict() == once | dict.fromkeys(["random", "swap random"], 3 * FEW)
    tau = dict(l2.quantile_thresholds(plain.traces, 0.8))
    by_hand = l2.Suppression(tau, layers="late", sink_ratio=20.0)
    out = l2.generate(reasoner, prompts, interventions=[by_hand], **options)
    high = outcomes[outcomes["arm"] == "high"].set_index("prompt")
    assert high["correct"].tolist() == [bool(l2.is_correct(p, c.text)) for p, c in zip(problems, out, strict=True)]
    events = out.events().query("fired")
    assert high["events"].sum() == len(events)
    assert high["positions"].sum() == len(events[["sequence", "position"]].drop_duplicates())
    assert (outcomes.loc[outcomes["arm"] == "none", ["positions", "events"]] == 0).all().all()
    table = l2.analysis.causal_table(outcomes).set_index("arm")
    assert table.loc["none", "accuracy"] == np.mean([l2.is_correct(p, c.text) for p, c in zip(problems, plain, strict=True)])
    assert 0 < table.loc["paired", "events"] <= table.loc["high", "events"]
    first = outcomes[(outcomes["arm"] == "random") & (outcomes["draw"] == 0)].set_index("prompt")
    paired = outcomes[outcomes["arm"] == "paired"].set_index("prompt")
    assert (paired["events"] <= first["events"]).all(), "no more than partners were found for"


def test_the_answer_is_found_where_it_is_stated() -> None:
    model = models.use(models.Case("llama", "bridge"))
    prompt = model.tokenizer("Question:").input_ids
    for answer, text, expected in (
        ("42", " 17 and 25 make 42. The answer is 42.", "42"),
        ("Paris", " The capital is Paris", "Paris"),
        ("7", " I can't say", None),
    ):
        ids = [*prompt, *model.tokenizer(text, add_special_tokens=False).input_ids]
        (trace,) = l2.collect(model, [ids], prompt_lens=[len(prompt)], progress=False)
        at = answer_at(Problem(question="q", answer=answer, family="f", options=("Paris",) if answer == "Paris" else ()), trace)
        assert (at is None) == (expected is None)
        if at is not None and expected is not None:
            stated = "".join(trace.str_tokens[at:]).strip()
            assert stated.startswith(expected) and stated.rstrip(".") == expected


def test_what_cant_be_measured_is_noted_and_a_bug_ends_the_analysis(
    reasoner: Any, problems: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "quantiles": (), "save_to": tmp_path}

    def raising(error: Exception) -> Any:
        def table(*_: Any, **__: Any) -> Any:
            raise error

        return table

    monkeypatch.setattr(stages, "level_trend", raising(Unmeasurable("all of one level")))
    monkeypatch.setattr(stages, "pressure_table", raising(Unsupported("no such head")))
    analysis = analyse(reasoner, None, problems[:8], **options)
    assert (analysis.notes["trend"], analysis.notes["pressure"]) == ("all of one level", "no such head")
    assert "trend" not in analysis.tables and "dynamics" in analysis.tables
    for bug in (ValueError("a bug"), KeyError("a bug"), InputError("a bug")):
        monkeypatch.setattr(stages, "level_trend", raising(bug))
        with pytest.raises(type(bug), match="a bug"):
            analyse(reasoner, None, problems[:8], **options)
