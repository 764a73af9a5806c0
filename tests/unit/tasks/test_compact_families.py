"""The compact families: answers and thinking are worked out again from the question's characters, in another way."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tl_l2norm.tasks.families.compact import COMPACT
from tl_l2norm.tasks.problems import FAMILIES, Problem, make_problems
from tl_l2norm.tasks.verifiers import is_correct

CASES = [(family.name, level) for family in COMPACT for level in (1, 2, 5, family.levels)]


def solve_modular(question: str) -> tuple[str, int]:
    start, *steps = re.split(r"[A-L]", question.removeprefix("mod 10: "))
    expression = start
    for step in steps:
        expression = f"({expression}{step})"
    return str(eval(expression) % 10), len(steps)  # one remainder at the end is enough


def solve_swaps(question: str) -> tuple[str, int]:
    listed, chain, letter = re.fullmatch(r"row ([a-e1-5]{10}): ([A-L1-5]+) ([a-e])", question).groups()
    places = {place: name for name, place in re.findall(r"([a-e])([1-5])", listed)}
    steps = re.findall(r"[A-L]([1-5])([1-5])", chain)
    for one, other in steps:
        places[one], places[other] = places[other], places[one]
    return next(place for place, name in places.items() if name == letter), len(steps)


def solve_circuit(question: str) -> tuple[str, int]:
    p, q, r, chain, asked = re.fullmatch(r"bits pqr=([01])([01])([01]): ([A-Lpqr1]+) ([pqr])", question).groups()
    code = "\n".join(f"{target} = {target} ^ {operand}" for target, operand in re.findall(r"[A-L]([pqr])([pqr1])", chain))
    state = {"p": int(p), "q": int(q), "r": int(r)}
    exec(code, {}, state)
    return str(state[asked]), code.count("\n") + 1


def solve_pointers(question: str) -> tuple[str, int]:
    arrows, node, count = re.fullmatch(r"map ([A-La-l ]+): ([a-l]) (\d+)", question).groups()
    target = {arrow[0]: arrow[1] for arrow in arrows.split()}
    seen = [node]
    for _ in range(int(count)):
        seen.append(target[seen[-1].upper()])
    assert len(set(seen)) == len(seen) and len(target) == 12
    return seen[-1], int(count)


def solve_maximum(question: str) -> tuple[str, int]:
    letters = sorted(question.removeprefix("max "))
    return letters[-1], len(letters) - 1


SOLVERS = {
    "modular": solve_modular,
    "swaps": solve_swaps,
    "circuit": solve_circuit,
    "pointers": solve_pointers,
    "maximum": solve_maximum,
}

THINKING = {
    "mod 10: 7A+5B*3": "7A+5=2B*3=6",
    "row a3b1c5d2e4: A12B35 c": "c5A12=5B35=3",
    "bits pqr=101: ApqBq1 r": "101Apq=101Bq1=111r=1",
    "map Ac Be Ca Da Eb Fa Ga Ha Ia Ja Ka La: b 2": "1 Be2 Eb",
    "max kdtb": "kd=kt=tb=t",
}


@pytest.mark.parametrize(("family", "level"), CASES)
def test_answer_and_number_of_steps_follow_from_the_question(family: str, level: int) -> None:
    for problem in make_problems(family, 60, level=level, seed=3):
        assert SOLVERS[family](problem.question) == (problem.answer, level), problem.question


@pytest.mark.parametrize(("question", "thinking"), THINKING.items())
def test_thinking_is_as_worked_out_by_hand(question: str, thinking: str) -> None:
    family = {"mod": "modular", "row": "swaps", "bits": "circuit", "map": "pointers", "max": "maximum"}[question.split()[0]]
    assert Problem(question=question, answer=None, family=family).thinking == thinking
    assert Problem(question=question, answer=None, family=family, source="a file").thinking is None


@pytest.mark.parametrize(("family", "level"), CASES)
def test_thinking_ends_with_the_answer_and_has_a_step_for_each_level(family: str, level: int) -> None:
    for problem in make_problems(family, 40, level=level, seed=1):
        thinking = problem.thinking
        assert thinking is not None and thinking[-1] == problem.answer
        steps = len(re.findall(r"\d [A-L]", thinking)) if family == "pointers" else thinking.count("=")
        assert steps == level + (family == "circuit")
        assert is_correct(problem, f"<think>\n{thinking}\n</think>\n\n{problem.answer}")
        assert not is_correct(problem, f"<think>\n{thinking}\n</think>\n\n")


@pytest.mark.parametrize("family", [name for name in SOLVERS if name != "maximum"])
def test_no_answer_is_a_good_guess(family: str) -> None:
    problems = make_problems(family, 400, level=FAMILIES[family].levels)
    answers = Counter(p.answer for p in problems)
    assert max(answers.values()) < 1.35 * 400 / {"modular": 10, "swaps": 5, "circuit": 2, "pointers": 12}[family] + 12
