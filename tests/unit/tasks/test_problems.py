"""The answers are worked out again from the question's words; responses for the verifier are written by hand."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import pickle
import random
import re
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_l2norm.tasks.families.prose import PROSE
from tl_l2norm.tasks.problems import FAMILIES, Problem, draw_problems, make_mixture, make_problems
from tl_l2norm.tasks.sources import load_problems, reasoning_gym_problems
from tl_l2norm.tasks.verifiers import extract_answer, is_correct

LEVELS = (1, 2, 5, 10)


# An independent reader for each family

SIGNS = {"Add": "+", "Subtract": "-", "Multiply by": "*"}


def solve_arithmetic(question: str) -> tuple[str, int]:
    value = int(re.search(r"Start with (-?\d+)", question)[1])
    steps = re.findall(r"(Add|Subtract|Multiply by) (\d+)\.", question)
    for verb, number in steps:
        value = eval(f"{value} {SIGNS[verb]} {number}")
    return str(value), len(steps)


def solve_word(question: str) -> tuple[str, int]:
    first, *steps, _, _ = re.split(r"(?<=[.?]) ", question)
    owner, count = first.split()[0], int(first.split()[2])
    for step in steps:
        words = step.rstrip(".").split()
        amount = next((int(word) for word in words if word.isdigit()), count)
        loses = words[0] == owner and words[1] in ("gives", "loses")
        count += -amount if loses else amount
        assert count > 0, step
    return str(count), len(steps)


def solve_boolean(question: str) -> tuple[str, int]:
    facts = {name: word == "true" for name, word in re.findall(r"([PQR]) is (true|false)", question)}
    expression = question.split("value of: ")[1].split("?")[0]
    return str(eval(expression, {}, facts)).lower(), len(re.findall(r"\b(?:and|or|not)\b", expression))


def solve_comparison(question: str) -> tuple[str, int]:
    name, points = re.match(r"(\w+) has (\d+) points", question).groups()
    scores = {name: int(points)}
    relations = re.findall(r"(\w+) has (\d+) (more|fewer) than (\w+)\.", question)
    for who, gap, sign, other in relations:
        scores[who] = scores[other] + int(gap) * (1 if sign == "more" else -1)
    ranked = sorted(scores, key=scores.__getitem__)
    assert len(set(scores.values())) == len(scores) and min(scores.values()) > 0
    return ranked[-1 if "most points" in question else 0], len(relations)


def solve_tracking(question: str) -> tuple[str, int]:
    holder = {colour: name for name, colour in re.findall(r"(\w+) has the (\w+) ball", question)}
    swaps = re.findall(r"(\w+) and (\w+) swap", question)
    for one, other in swaps:
        holder = {colour: {one: other, other: one}.get(name, name) for colour, name in holder.items()}
    asked = re.search(r"ball that (\w+) has now", question)[1]
    return next(colour for colour, name in holder.items() if name == asked), len(swaps)


SOLVERS = {
    "arithmetic": solve_arithmetic,
    "word": solve_word,
    "boolean": solve_boolean,
    "comparison": solve_comparison,
    "tracking": solve_tracking,
}


# Making problems


def test_every_family_has_a_solver_here() -> None:
    assert set(SOLVERS) == {family.name for family in PROSE}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", SOLVERS)
def test_answer_and_number_of_steps_follow_from_the_question(family: str, level: int) -> None:
    for problem in make_problems(family, 60, level=level, seed=3):
        assert SOLVERS[family](problem.question) == (problem.answer, level), problem.question


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", SOLVERS)
def test_questions_and_ids_are_distinct_and_say_the_form_of_the_answer(family: str, level: int) -> None:
    problems = make_problems(family, 60, level=level)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 60
    assert all(re.search(r"\? Answer with [a-z ]+\.$", p.question) for p in problems)
    assert all(p.answer in p.options for p in problems if p.options)
    assert {(p.family, p.level) for p in problems} == {(family, level)}


@pytest.mark.parametrize("family", ["boolean", "comparison", "tracking"])
def test_no_option_is_a_good_guess(family: str) -> None:
    problems = make_problems(family, 400, level=5)
    position = Counter(p.options.index(p.answer) for p in problems)
    assert max(position.values()) < 1.35 * 400 / len(problems[0].options)


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    level=st.integers(1, 10),
    seed=st.integers(0, 2**40),
    n=st.integers(1, 20),
    more=st.integers(1, 20),
)
def test_problem_i_does_not_depend_on_n(family: str, level: int, seed: int, n: int, more: int) -> None:
    level = min(level, FAMILIES[family].levels)
    few = make_problems(family, n, level=level, seed=seed)
    assert make_problems(family, n + more, level=level, seed=seed)[:n] == few


def test_problems_are_the_same_on_every_machine() -> None:
    (problem,) = make_problems("arithmetic", 1, level=2)
    assert problem.question == "Start with 5. Add 11. Subtract 5. What is the result? Answer with a number."
    assert problem.id == "5eb02948fcc25a35"


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    first = make_problems("word", 5, level=3)
    random.seed(99)
    assert make_problems("word", 5, level=3) == first
    assert not {p.id for p in first} & {p.id for p in make_problems("word", 5, level=3, seed=1)}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_splits_share_no_problem_and_are_one_in_five(family: str) -> None:
    train, test = (make_problems(family, 60, level=4, split=split) for split in ("train", "test"))
    assert {p.split for p in train} == {"train"} and {p.split for p in test} == {"test"}
    assert all(int(p.id, 16) % 5 == 0 for p in test) and not any(int(p.id, 16) % 5 == 0 for p in train)
    both = make_problems(family, 400, level=4)
    assert sum(p.split == "test" for p in both) / 400 == pytest.approx(0.2, abs=0.08), "four standard errors"
    assert tuple(p for p in both if p.split == "train")[:60] == train


def test_wrong_requests_say_what_to_ask_for() -> None:
    with pytest.raises(ValueError, match=r"no family 'arithmetics'. Did you mean 'arithmetic'.*boolean.*word"):
        make_problems("arithmetics", 1)
    for level in (0, 11):
        with pytest.raises(ValueError, match=rf"levels 1 to 10, not {level}"):
            make_problems("word", 1, level=level)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        make_problems("word", 0)
    with pytest.raises(ValueError, match="gave 120 distinct questions, not 121"):
        make_problems("boolean", 121)  # 8 assignments of three truth values, 3 negations and 2 * 3 * 2 pairs


def test_mixture_is_balanced_and_does_not_depend_on_n() -> None:
    mixture = make_mixture(40)
    assert set(Counter((p.family, p.level) for p in mixture).values()) == {2}
    assert len({p.id for p in mixture}) == 40
    for n in (1, 7, 23):
        assert make_mixture(n) == mixture[:n]
        for part in (Counter(p.family for p in mixture[:n]), Counter(p.level for p in mixture[:n])):
            assert max(part.values()) - min(part.values()) <= 1


def test_mixture_of_counts_with_a_common_factor_still_meets_every_pair() -> None:
    mixture = make_mixture(16, families=["word", "boolean", "tracking", "arithmetic"], levels=[1, 2, 3, 4])
    assert set(Counter((p.family, p.level) for p in mixture).values()) == {1}
    with pytest.raises(ValueError, match="at least one family"):
        make_mixture(3, families=[])
    with pytest.raises(ValueError, match="Did you mean 'word'"):
        make_mixture(3, families=["wrod"])
    with pytest.raises(ValueError, match="no group of families 'prosa'. Did you mean 'prose'"):
        make_mixture(3, families="prosa")


def test_a_mixture_of_compact_families_is_of_those_alone() -> None:
    mixture = make_mixture(20, families="compact", split="test")
    assert {p.family for p in mixture} == {"modular", "swaps", "circuit", "pointers", "maximum"}
    assert {p.split for p in mixture} == {"test"}


# Verifying


def numeric(answer: str = "42") -> Problem:
    return Problem(question="?", answer=answer, family="custom")


BOOLEAN = Problem(question="?", answer="true", family="custom", options=("true", "false"))
NAME = Problem(question="?", answer="Ben", family="custom", options=("Ann", "Ben", "Cleo"))
TEXT = Problem(question="?", answer="Paris", family="custom")


@pytest.mark.parametrize("family", SOLVERS)
def test_a_right_answer_is_right_and_another_problem_s_is_wrong(family: str) -> None:
    problems = make_problems(family, 12, level=3)
    for problem in problems:
        assert is_correct(problem, f"Let me see.\n\nThe answer is **{problem.answer}**.")
        assert is_correct(problem, f" {problem.answer}.")
        assert not is_correct(problem, "I do not know.")
        assert not is_correct(problem, "")
        wrong = next((p.answer for p in problems if p.answer != problem.answer), "")
        assert not is_correct(problem, f"The answer is {wrong}.")


@pytest.mark.parametrize("family", SOLVERS)
def test_a_statement_counts_before_and_after_an_echo_of_the_question(family: str) -> None:
    for problem in make_problems(family, 20, level=2):
        assert is_correct(problem, f"{problem.question}\nThe answer is {problem.answer}.")
        assert is_correct(problem, f"The answer is {problem.answer}.\n{problem.question}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "42"),
        (" 42.", "42"),
        ("\n\n42. That is the sum.", "42"),
        ("The answer is 42.", "42"),
        ("The answer is 42 (40 + 2).", "42"),
        ("The answer is 42. Check: 40 + 2 = 43.", "42"),
        ("The answer is 3 + 39 = 42, since 6 * 8 = 48.", "42"),
        ("The answer to the question is 42 because 6 times 7.", "42"),
        ("The answer is 41. Wait, no. The answer is 42.", "42"),
        ("**Answer:** 42", "42"),
        ("ANSWER: $42$", "42"),
        ("We get \\boxed{42}, as 7 shows.", "42"),
        ("\\[ \\boxed{\\text{42}} \\] after 3 steps", "42"),
        ("<answer>42</answer> in 3 steps", "42"),
        ("**42** apples, and 3 pears are left", "42"),
        ("**40** first, then 40 + 2 = 42.", "42"),
        ("6 * 7 = 42", "42"),
        ("First 3, then 40 more.\n42", "42"),
        ("It is 1,234.", "1234"),
        ("It is 1{,}234.", "1234"),
        ("It is $1,234,567.50.", "1234567.50"),
        ("It is -5.", "-5"),
        ("It is \u22125.", "-5"),
        ("It is minus 5.", "-5"),
        ("The answer is negative 5.", "-5"),
        ("9 - 14 = -5", "-5"),
        ("It is 42.0", "42.0"),
        ("It is .5", ".5"),
        ("Step 1: 42\nStep 2: done", "42"),
        ("The result is 42.\n2. It is done.", "42"),
        ("<think>7</think>42", "42"),
        ("a</think>9</think>42", "42"),
    ],
)
def test_numbers_are_found(text: str, expected: str) -> None:
    assert extract_answer(numeric(), text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x42",
        "42nd",
        "42kg",
        "COVID-42",
        "a 42-digit number",
        "v4.42.0",
        "10:42",
        "42:10",
        "12,42",
        "2 42",
        "41 + 42",
        "41 - 42",
        "41-42",
        "3 x 42",
        "3 \\times 42",
        "2^42",
        "1/42",
        "\\frac{1}{42}",
        "41 or 42",
        "40, 41, 42",
        "between 41 and 42",
        "41 to 42",
        "at least 42",
        "more than 42",
        "The answer is not 42.",
        "The answer isn't 42.",
        "It cannot be 42.",
        "It can't be **42**",
        "42 is not the answer.",
        "42 is wrong.",
        "Is it 42?",
        "-42",
        "minus 42",
        "negative 42",
        "142",
        "420",
        "4 2",
        "4.2",
        "42.5",
        "The answer is 41. I had 42 before.",
        "The answer is 41. I had **42** before.",
        "<think>42",
        "42</think>",
        "42</think> I do not know",
        "forty-two",
        "",
    ],
)
def test_numbers_are_not_right_by_accident(text: str) -> None:
    assert is_correct(numeric(), text) is False


@pytest.mark.parametrize(("given", "answer"), [("3", "3.0"), ("3.0", "3"), ("1,000", "1000"), ("1000", "1e3"), ("-0", "0")])
def test_numbers_are_compared_as_numbers(given: str, answer: str) -> None:
    assert is_correct(numeric(answer), given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("True.", "true"),
        ("answer: **FALSE**", "false"),
        ("P is true, Q is false, so it is true", "true"),
        ("true and false = false", "false"),
        ("not true = false", "false"),
        ("It is not false, it is true", "true"),
        ("not true", None),
        ("The answer is not true.", None),
        ("It isn't true.", None),
        ("true or false", None),
        ("neither true nor false", None),
        ("Is it true?", None),
        ("untrue", None),
        ("truely", None),
    ],
)
def test_truth_values(text: str, expected: str | None) -> None:
    assert extract_answer(BOOLEAN, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BEN!", "Ben"),
        ("The answer is **Ben**, not Ann.", "Ben"),
        ("Ben has more points than Ann.", "Ben"),
        ("The answer is Ben. Cleo has fewest.", "Ben"),
        ("Ann, Ben and Cleo", None),
        ("Benjamin", None),
        ("Ben's", None),
        ("Not Ben", None),
        ("Reuben", None),
    ],
)
def test_names(text: str, expected: str | None) -> None:
    assert extract_answer(NAME, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "paris",
        "The answer is Paris. It is large.",
        "Answer: 'Paris.'",
        "so \\boxed{Paris} it is",
        "I think.\n**Paris**",
        "The answer is London. No, the answer is Paris!",
        "<answer>Paris</answer> The answer is Rome.",
    ],
)
def test_free_text_is_right(text: str) -> None:
    assert is_correct(TEXT, text) is True


@pytest.mark.parametrize(
    "text", ["Paris or Rome", "not Paris", "Parisian", "The answer is London. Paris", "Paris\nRome", "<answer></answer>", "..."]
)
def test_free_text_is_not_right_by_accident(text: str) -> None:
    assert is_correct(TEXT, text) is False


def test_free_text_of_punctuation_alone_is_compared_as_it_stands() -> None:
    assert not is_correct(Problem(question="?", answer="!", family="custom"), "?")


def test_yes_and_no_are_options_without_being_told() -> None:
    problem = Problem(question="?", answer="Yes", family="custom")
    assert is_correct(problem, "I say yes, it is.")
    assert is_correct(problem, "yes or no") is False


def test_correctness_of_a_problem_without_answer_is_not_known() -> None:
    assert is_correct(Problem(question="?", answer=None, family="custom"), "42") is None


@pytest.mark.parametrize(
    "unit", [" ", "= ", "1 ", "12 = 3 + 4, ", "answer is ", "the answer is = ", "**", "{", "\\boxed{", "-"]
)
def test_long_responses_are_read_in_one_go(unit: str) -> None:
    """What grows with the square of the length takes minutes: the bound is one of patience, not of speed."""
    start = time.process_time()
    for problem in (numeric(), BOOLEAN, TEXT):
        extract_answer(problem, unit * (20_000 // len(unit)) + "42")
        extract_answer(problem, "7 true" + unit * (20_000 // len(unit)) + "y 42 false")
    assert time.process_time() - start < 30


# Reading problems


untagged = st.text(st.characters(codec="utf-8", exclude_characters="<["), min_size=1).filter(str.strip)
"""An answer that begins a thought and never ends it is refused."""

records = st.fixed_dictionaries(
    {"question": st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)},
    optional={
        "answer": st.one_of(untagged, st.integers(), st.none()),
        "family": st.text(st.characters(codec="utf-8"), min_size=1),
        "level": st.integers(1, 99),
        "comment": st.integers(),
    },
)


@settings(max_examples=40, deadline=None)
@given(items=st.lists(records, min_size=1, max_size=5, unique_by=lambda r: r["question"]), ascii_only=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "own.jsonl"
    path.write_text("\n\n".join(json.dumps(item, ensure_ascii=ascii_only) for item in items) + "\n", encoding="utf-8")
    for problem, item in zip(load_problems(path), items, strict=True):
        answer = item.get("answer")
        assert problem.question == item["question"]
        assert problem.answer == (None if answer is None else str(answer))
        assert (problem.family, problem.level) == (item.get("family", "custom"), item.get("level", 1))
        assert problem.source == "own.jsonl"


def test_answers_of_a_file_are_verified_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "a", "answer": 3.0}\n{"question": "b", "answer": true}\n{"question": "c"}\n')
    number, truth, unknown = load_problems(str(path))
    assert is_correct(number, "It is 3.") and is_correct(truth, "It is true.") and is_correct(unknown, "x") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{question}", r"not JSON \(.+ at column 2\)"),
        ("[1, 2]", r"expected an object, got \[1, 2\]"),
        ("{}", "no question"),
        ('{"question": null}', "no question"),
        ('{"question": "  "}', "not empty, got '  '"),
        ('{"question": 5}', "question must be text"),
        ('{"question": "b", "answer": []}', r"answer must be text, a number or left out, got \[\]"),
        ('{"question": "b", "answer": ""}', "answer must be"),
        ('{"question": "b", "family": 1}', "family must be text, got 1"),
        ('{"question": "b", "level": "2"}', "level must be a whole number from 1 on, got '2'"),
        ('{"question": "b", "level": true}', "level must be"),
        ('{"question": "b", "level": 0}', "level must be"),
        ('{"question": "a"}', "same question as line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"question": "a"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"own\.jsonl, line 3: .*{message}"):
        load_problems(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl.*JSONL"):
        load_problems(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no problems"):
        load_problems(tmp_path / "empty.jsonl")


def test_without_reasoning_gym_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("reasoning_gym"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'tl_l2norm\[reasoning-gym\]'"):
        reasoning_gym_problems("chain_sum", 1)


def test_reasoning_gym_judges_its_own_problems() -> None:
    pytest.importorskip("reasoning_gym")
    sums = reasoning_gym_problems("chain_sum", 30, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert len({p.question for p in sums}) == 30
    for problem in sums:
        expression = re.search(r"problem: (.+) =", problem.question)[1]
        assert is_correct(problem, f"<think>hm</think>The answer is {eval(expression)}.")
        assert not is_correct(problem, f"The answer is {eval(expression) + 1}.")
    # A countdown has many solutions; the reference answer is only one of them.
    (countdown,) = reasoning_gym_problems("countdown", 1, min_numbers=3, max_numbers=3, seed=1)
    swapped = " + ".join(reversed(countdown.answer.split(" + ")))
    assert swapped != countdown.answer
    assert is_correct(countdown, f"<answer>{swapped}</answer>") and not is_correct(countdown, "<answer>1</answer>")


def test_reasoning_gym_problems_are_values() -> None:
    pytest.importorskip("reasoning_gym")
    problems = reasoning_gym_problems("countdown", 2)
    assert problems == reasoning_gym_problems("countdown", 2) and hash(problems[0]) is not None
    for twin in (pickle.loads(pickle.dumps(problems[0])), copy.deepcopy(problems[0])):
        assert twin == problems[0] and is_correct(twin, f"<answer>{twin.answer}</answer>")
    with pytest.raises(ValueError, match=r"no reasoning_gym dataset 'chain_summ'. Did you mean 'chain_sum'"):
        reasoning_gym_problems("chain_summ", 1)


@pytest.mark.parametrize("split", ["train_", "Test", "", 1])
def test_an_unknown_split_is_refused_at_once(split: Any) -> None:
    # What a user calls: the type checker of the tests is in the way.
    made, mixed, drawn = map(inspect.unwrap, (make_problems, make_mixture, draw_problems))
    for make in (partial(made, "arithmetic", 2), partial(mixed, 2), partial(drawn, "arithmetic")):
        with pytest.raises(ValueError, match="no split"):
            make(split=split)
