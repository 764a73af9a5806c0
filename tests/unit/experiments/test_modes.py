import dataclasses
from pathlib import Path

import pytest

import tl_l2norm as l2
from tests import models
from tl_l2norm.experiments import modes
from tl_l2norm.experiments.modes import thinking_room
from tl_l2norm.models.backends import backend_of
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.text.prompts import chat_prompt

PROBLEMS = [
    Problem(question="What is 2 + 2?", answer="4", family="sums", level=1),
    Problem(question="What is the capital of France? Answer with one word.", answer="Paris", family="facts", level=1),
    Problem(question="Name a colour.", answer=None, family="open", level=2),
]


def test_each_problem_is_asked_in_each_mode_and_judged(smollm2: object) -> None:
    results = l2.run_modes(smollm2, PROBLEMS, max_new_tokens=24, max_direct_tokens=6, progress=False)
    assert [(r.mode, r.problem.family) for r in results] == [(m, p.family) for m in ("think", "direct") for p in PROBLEMS]
    by = {(r.mode, r.problem.family): r for r in results}
    assert "Paris" in by["direct", "facts"].response and by["direct", "facts"].correct is True
    assert by["think", "open"].correct is None
    assert by["think", "sums"].direct is None and by["direct", "sums"].direct is not None
    labels = by["direct", "facts"].trace.labels
    assert (labels["mode"], labels["family"], labels["level"]) == ("direct", "facts", 1)
    assert labels["prompt"] == PROBLEMS[1].id
    assert by["direct", "facts"].prompt.endswith("The answer is")
    table = l2.analysis.accuracy_table(results, by=("mode",)).set_index("mode")
    assert table.loc["direct", "n"] == 2
    assert table.loc["direct", "low"] <= table.loc["direct", "accuracy"] <= table.loc["direct", "high"]


@pytest.mark.slow
def test_saved_results_are_gone_on_from_but_not_those_of_other_options(smollm2: object, tmp_path: Path) -> None:
    options = {"max_new_tokens": 6, "max_direct_tokens": 3, "progress": False, "save_to": tmp_path}
    first = l2.run_modes(smollm2, PROBLEMS, **options)
    broken = models.use(models.Case("llama", "bridge"))  # would answer otherwise, if it were asked
    assert len(list(tmp_path.iterdir())) == 2
    again = l2.run_modes(smollm2, PROBLEMS, **options)
    assert [r.response for r in again] == [r.response for r in first]
    assert all((a.trace.l2_norms == b.trace.l2_norms).all() for a, b in zip(first, again, strict=True))
    l2.run_modes(broken, PROBLEMS, **options)
    l2.run_modes(smollm2, PROBLEMS, **{**options, "max_new_tokens": 7})
    assert len(list(tmp_path.iterdir())) == 5, "another model: two more; another length of thinking: one more"


@pytest.mark.parametrize(
    ("template", "room"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n", "the context"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}on{% endif %}",
            "the context",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "little"),
    ],
)
def test_a_model_whose_template_thinks_has_more_room(template: str, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = l2.load_model(models.folder("llama"))
    model.tokenizer.chat_template = template
    backend = backend_of(model)
    prompt = chat_prompt(model.tokenizer, "What is 2 + 2?")
    monkeypatch.setattr(modes, "_ROOM_INSTRUCTED", 64)
    assert thinking_room(backend, [prompt]) == (64 if room == "little" else 256 - len(prompt.tokens) + 1)
    monkeypatch.setattr(modes, "_ROOM", 100)
    assert thinking_room(backend, [prompt, prompt]) == min(100, thinking_room(backend, [prompt]))


def test_bad_input(smollm2: object) -> None:
    with pytest.raises(ValueError, match="no problems given"):
        l2.run_modes(smollm2, [])
    with pytest.raises(ValueError, match="some problems are the same"):
        l2.run_modes(smollm2, [PROBLEMS[0], PROBLEMS[0]])
    twin = dataclasses.replace(PROBLEMS[0], family="renamed")
    with pytest.raises(ValueError, match=f"'{PROBLEMS[0].id} .*' and '{twin.id} \\(renamed\\)' are the same .* tokens"):
        l2.run_modes(smollm2, [*PROBLEMS, twin])
    traces = l2.collect(smollm2, "One two three.", progress=False)
    known = [dataclasses.replace(problem, answer="1") for problem in (PROBLEMS[0], twin)]
    with pytest.raises(ValueError, match="are the same .* tokens: each counts once"):
        l2.experiments.suppress_and_ask(smollm2, known, traces, progress=False)
