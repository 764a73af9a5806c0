import dataclasses
import re
from pathlib import Path

import pytest
import torch

from tests.builders import NASTY, make_result, make_results, make_trace
from tests.texts import text_of
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.show.report import report, summary
from tl_l2norm.tasks.problems import Problem


def written(tmp_path: Path, *args: object, **kwargs: object) -> str:
    return report(*args, path=tmp_path / "report.html", **kwargs).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_the_report_says_what_was_run_and_what_came_of_it(tmp_path: Path) -> None:
    page = written(tmp_path, make_results(8))
    text = text_of(page)
    assert (
        "Thinking norms are higher than direct ones in the late layers (layer 1, as many tokens of each response). "
        "Difference 10 [10, 10], n = 8 prompts" in text
    )
    for fact in (
        "Model by hand",
        "Backend bridge",
        "Data type float32",
        "Prompts 8",
        "8 thinking, 8 direct",
        "torch 0",
        "greedy",
    ):
        assert fact in text
    assert "thinking 50% 22% to 78% 8 - 0% direct 50% 22% to 78% 8 0% 0%" in text
    assert "0 &lt;|start|&gt; 0-1 25,000 16 of 16" in text
    assert "arXiv 2606.06188" in text
    assert text.index("thinking 50%") < text.index("direct 50%")


def test_features_stand_beside_the_norms_with_their_warning(tmp_path: Path) -> None:
    results = []
    for result in make_results(8):
        acts = FeatureActs.of_dense(torch.eye(len(result.trace), 9) * (3.0 if result.mode == "think" else 2.0), "topk, by hand")
        results.append(dataclasses.replace(result, trace=dataclasses.replace(result.trace, features={1: acts})))
    page = written(tmp_path, results)
    text = text_of(page)
    assert "Norm and SAE features by layer" in text and page.count("<figure ") == 7
    assert "SAE: topk, by hand" in text and "follows the norm in part by construction" in text
    assert "1 3 [3, 3] 2 [2, 2] +1" in text, "layer, thinking, direct, difference of summed activations"


def test_each_library_is_there_once_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = written(tmp_path, make_results(8))
    assert page.count('customElements.define("l2-explorer"') == 1 and page.count("plotly.js (cartesian - minified) v") == 1
    assert page.count("<figure ") == page.count('download="by-hand_') - 1 == 6, "each with its numbers, as have the tokens"
    assert len(page) < 2_000_000, "with both libraries"
    markup = re.sub(r"(?s)<script\b.*?</script>", "", page)
    assert not re.search(r"https?://|\bsrc=|\bhref=(?!\"(#|data:text/csv))|url\(|@import", markup)
    assert "Content-Security-Policy" in markup and "default-src &#39;none&#39;" in markup


def test_sections_are_of_what_was_run_and_the_contents_lead_to_each(tmp_path: Path) -> None:
    late = ["late", "tokens"]
    silent = make_trace(["s", "p"], prompt_len=2)
    for results, there, gone in (
        (make_results(8), late, ["metrics"]),
        ([make_result(0, "think", trace=silent), make_result(1, "think", trace=silent)], [], [*late, "metrics"]),
        ([make_result(0, "think", trace=dataclasses.replace(silent, metrics={"own": silent.l2_norms}))], [], ["metrics"]),
    ):
        page = written(tmp_path, results, examples=1)
        anchors, links = re.findall(r'<h2 id="(\w+)"', page), re.findall(r'<li><a href="#(\w+)"', page)
        assert anchors == links and len(set(links)) == len(links) and set(there) <= set(links)
        assert {"run", "accuracy", "curves", "sinks", "sequence", "examples", "reading"} <= set(links)
        assert not set(gone) & set(links)


def test_a_recorded_metric_has_its_figure_and_its_numbers(tmp_path: Path) -> None:
    results = [
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, metrics={"own": r.trace.l2_norms / 2}))
        for r in make_results(8)
    ]
    page = written(tmp_path, results)
    assert 'id="figure-own"' in page and 'download="by-hand_own.csv"' in page and "Metrics by layer" in page


def test_norms_against_what_goes_with_them_anyway(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, make_results(8)))
    assert "Late norm against length, position and correctness" in text
    assert "position thinking (n = 8) direct (n = 8) 0 145 [" in text, "ten times the mean of 11 and so on, at the first token"
    assert "response thinking (n = 4) direct (n = 4) right" in text
    assert "token in mean norm of the median greatest times prompts swer thought" in text or "swer answer" in text


@pytest.mark.parametrize(("shift", "word"), [(10.0, "higher"), (-10.0, "lower"), (0.0, "neither higher nor lower")])
def test_the_verdict_is_told_whichever_way_it_falls(tmp_path: Path, shift: float, word: str) -> None:
    results = []
    for i in range(9):
        for mode in ("think", "direct"):
            norm = 100.0 + (shift + (-1) ** i if mode == "think" else 0)
            results.append(make_result(i, mode, trace=make_trace(["s", "a"], norms=[[25_000, norm]])))  # type: ignore[arg-type]
    assert f"Thinking norms are {word} than direct ones" in text_of(written(tmp_path, results))
    assert f"Thinking norms are {word} than direct ones" in summary(results)


def test_tokens_of_responses_that_are_left_out_as_sinks_are_told(tmp_path: Path) -> None:
    usual = [make_result(i, "think", trace=make_trace(["s", "q", "a"], prompt_len=2)) for i in range(8)]
    marked = [make_result(i, "direct", trace=make_trace(["s", "q", "a"], prompt_len=2, sinks=[0, 1])) for i in range(8)]
    says = "8 of the 16 tokens from which direct responses were chosen are over the bound of attention sinks in the late layers"
    assert says in text_of(written(tmp_path, [*usual, *marked]))
    assert "over the bound" not in summary(usual)


@pytest.mark.parametrize(("temperature", "says"), [(0.0, "Decoding greedy"), (0.8, "Decoding sampled at temperature 0.8")])
def test_decoding_is_told_by_its_temperature(tmp_path: Path, temperature: float, says: str) -> None:
    source = {"seed": 5, "temperature": temperature}
    results = [make_result(i, "think", trace=make_trace(["s", "a"], provenance=source)) for i in range(2)]
    assert says in text_of(written(tmp_path, results))


def test_few_prompts_say_nothing(tmp_path: Path) -> None:
    assert "With 3 prompts nothing can be said" in text_of(written(tmp_path, make_results(3)))
    one = text_of(written(tmp_path, make_results(1)))
    assert "With 1 prompt nothing can be said" in one and "no interval with so few" in one
    assert "nan" not in summary(make_results(1)).lower()


def test_one_mode_is_reported_without_a_comparison(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, make_results(8, "direct")))
    assert "No comparison of the modes: There are no thinking responses." in text.replace(". There", ": There")
    assert "direct 50% 22% to 78%" in text
    assert "No comparison of the modes: there are no direct responses." in summary(make_results(8, "think"))


def test_prompts_of_one_mode_only_are_left_out_and_counted() -> None:
    results = [*make_results(8), make_result(8, "think")]
    assert "n = 8 prompts" in summary(results).replace("\n", " ")
    assert "1 prompt asked in one mode only are left out." in summary(results).replace("\n", " ")
    apart = [make_result(0, "think"), make_result(1, "direct")]
    assert "no prompt was asked in both" in summary(apart)


def test_prompts_without_a_response_token_leave_nothing_to_compare(tmp_path: Path) -> None:
    silent = make_trace(["s", "p"], prompt_len=2)
    results = [make_result(i, mode, trace=silent) for i in range(2) for mode in ("think", "direct")]  # type: ignore[arg-type]
    text = text_of(written(tmp_path, results))
    assert "no prompt has response tokens in both" in text.lower()
    assert "No sequence has a response token" in text


def test_unknown_answers_are_not_wrong_answers(tmp_path: Path) -> None:
    unknown = {"correct": None, "problem": Problem(question="Why?", answer=None, family="own")}
    text = text_of(written(tmp_path, [make_result(0, "think", **unknown), make_result(0, "direct", **unknown)]))
    assert "No answer is known, so nothing was verified." in text
    assert "thinking not known - 0 - 0%" in text
    assert "answer not known" in text and "wrong" not in text


def test_what_weakens_the_comparison_is_said() -> None:
    results = make_results(8, "think", finish_reason="length") + make_results(8, "direct", direct=False)
    text = summary(results)
    assert "100% of the direct responses were not direct" in text
    assert "100% of the thinking responses were cut off" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(("cut", "warned"), [(2, False), (3, True), (10, True)])
def test_a_share_cut_off_over_a_fifth_stands_above_everything(tmp_path: Path, cut: int, warned: bool) -> None:
    results = [make_result(i, "think", finish_reason="length" if i < cut else "stop") for i in range(10)]
    results += make_results(10, "direct")
    text, page = summary(results), text_of(written(tmp_path, results))
    said = f"{10 * cut}% of the thinking responses were cut off at the token limit"
    assert said in text.replace("\n", " ") and said in page
    assert text.startswith("WARNING") == warned and ("WARNING" in page) == warned
    if warned:
        assert page.index("WARNING") < page.index("Thinking norms are higher")
        assert "max_new_tokens" in text.partition("\n\n")[0]


def test_modes_that_were_both_cut_off_share_one_warning() -> None:
    results = [make_result(i, mode, finish_reason="length") for i in range(8) for mode in ("think", "direct")]  # type: ignore[arg-type]
    text = summary(results)
    assert text.count("WARNING") == 1
    said = text.partition("\n\n")[0].replace("\n", " ")
    assert "100% of the thinking and 100% of the direct responses were cut off" in said
    assert "(max_new_tokens, max_direct_tokens)" in said and "what the model's context has left" in said


def test_hooks_of_others_stand_above_everything() -> None:
    hooked = [make_result(i, mode, trace=None) for i in range(8) for mode in ("think", "direct")]
    source = dataclasses.replace(hooked[0].trace.provenance, foreign_hooks=2)
    hooked = [dataclasses.replace(r, trace=dataclasses.replace(r.trace, provenance=source)) for r in hooked]
    assert summary(hooked).startswith("WARNING: 2 hooks that the run didn't put there were on the model.")


def test_families_and_levels_have_tables_of_their_own(tmp_path: Path) -> None:
    problems = [Problem(question=f"{i}", answer="1", family=family, level=i) for i, family in enumerate(["a", "b"], 1)]
    results = [make_result(0, mode, problem=p) for p in problems for mode in ("think", "direct")]  # type: ignore[arg-type]
    text = text_of(written(tmp_path, results))
    assert "By family" in text and "By level" in text
    assert "Families a, b" in text and "Levels 1, 2" in text


def test_model_text_is_never_markup(tmp_path: Path) -> None:
    nasty = "".join(NASTY)
    problem = Problem(question=nasty, answer=nasty, family="<script>alert(9)</script>", level=1)
    results = [make_result(0, mode, trace=make_trace(NASTY), problem=problem, correct=False) for mode in ("think", "direct")]  # type: ignore[arg-type]
    results.append(make_result(1, "think", trace=make_trace(NASTY)))
    page = written(tmp_path, results, title=nasty)
    drawings = re.findall(r'(?s)<script type="application/json" class="l2-drawing">(.*?)</script>', page)
    assert len(drawings) == 6 and not any("<" in drawing for drawing in drawings)
    markup = re.sub(r"(?s)<script>.*?</script>|<script type=\"(?:application/json|module)\".*?>.*?</script>", "", page)
    markup = re.sub(r"<script type=\"text/plain\" class=\"l2-data\">[A-Za-z0-9+/=]+</script>", "", markup)
    assert not re.search(r"<(script|img|svg|think)\b", markup)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in markup
    assert "<script>alert(" not in page


def test_examples_pair_the_modes_and_mark_right_and_wrong(tmp_path: Path) -> None:
    page = written(tmp_path, make_results(5), examples=2)
    titles = re.findall(r'<p class="l2-title">(.*?)</p>', page)
    assert len(titles) == 4
    assert [title.split(":")[0] for title in titles] == ["thinking", "direct"] * 2
    assert {title.split(": ")[1].split(",")[0] for title in titles} <= {"right", "wrong"}
    assert titles == re.findall(r'<p class="l2-title">(.*?)</p>', written(tmp_path, make_results(5), examples=2))
    assert "l2-title" not in re.sub(r"(?s)<(style|script)\b.*?</\1>", "", written(tmp_path, make_results(5), examples=0))


def test_layer_chooses_the_colours(tmp_path: Path) -> None:
    assert "residual stream after layer 0" in written(tmp_path, make_results(2), layer=0)
    assert "residual stream after layer 1" in written(tmp_path, make_results(2))
    with pytest.raises(ValueError, match="layer 9 was not recorded"):
        written(tmp_path, make_results(2), layer=9, examples=0)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        written(tmp_path, [])
    with pytest.raises(ValueError, match="examples"):
        written(tmp_path, make_results(1), examples=-1)
    other = make_trace(["s", "a"], norms=[[25_000, 1], [25_000, 2]], provenance={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="not comparable"):
        written(tmp_path, [*make_results(1), make_result(1, "think", trace=other)])


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "report.html"
    assert report(make_results(1), path=path) == path
    before = path.read_bytes()
    with pytest.raises(ValueError):
        report(make_results(1), path=path, layer=9)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("temperature", [None, 0.0, 0.8])
def test_a_response_that_is_given_twice_is_refused(tmp_path: Path, temperature: float | None) -> None:
    source = {"temperature": temperature, "seed": 5}
    results = [
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, provenance=dataclasses.replace(r.trace.provenance, **source)))
        for r in make_results(3)
    ]
    assert summary(results)
    for twice in ([*results, *results], [*results, results[2]]):
        with pytest.raises(ValueError, match="is given twice"):
            report(twice, path=tmp_path / "r.html")
        with pytest.raises(ValueError, match="is given twice"):
            summary(twice)


def test_samples_of_a_problem_are_told_apart_by_their_seeds() -> None:
    results = [
        dataclasses.replace(
            r, trace=dataclasses.replace(r.trace, provenance=dataclasses.replace(p, temperature=1.0, seed=seed))
        )
        for seed in (1, 2)
        for r in make_results(3)
        for p in [r.trace.provenance]
    ]
    assert "100%" not in summary(results) and len({id(r.trace) for r in results}) == 12
