"""Responses in the styles of public data sets against judgements by hand, and laws of judging."""

from __future__ import annotations

import threading
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.answer_samples import EXPRESSIONS, MULTIPLE_CHOICE, NUMBERS, name_of, samples
from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.verifiers import comparable_answer, extract_answer, is_correct


def problem(answer: str, question: str = "?") -> Problem:
    return Problem(question=question, answer=answer, family="custom")


@pytest.mark.parametrize("sample", samples(), ids=name_of)
def test_a_response_is_judged_as_by_hand(sample: tuple[Problem, str, bool]) -> None:
    asked, response, right = sample
    assert is_correct(asked, response) is right


def test_samples_hold_right_and_wrong_ones_of_every_style() -> None:
    counts = Counter(right for _, _, right in samples())
    assert min(counts.values()) > 80


@pytest.mark.parametrize("sample", [s for s in samples() if "<think>" not in s[1]], ids=name_of)
def test_a_response_that_was_cut_off_in_its_thought_states_nothing(sample: tuple[Problem, str, bool]) -> None:
    asked, response, _ = sample
    assert is_correct(asked, f"<think>{response}") is False
    assert comparable_answer(asked, f"<think>{response}") is None


@pytest.mark.parametrize("sample", samples(), ids=name_of)
def test_the_reference_itself_is_right_and_as_good_as_any_right_answer(sample: tuple[Problem, str, bool]) -> None:
    asked, response, right = sample
    assert is_correct(asked, f"The answer is {asked.answer}.") or is_correct(asked, f"<answer>{asked.answer}</answer>")
    if right:
        assert comparable_answer(asked, response) is not None


@pytest.mark.parametrize(
    ("answer", "responses", "value"),
    [
        ("3/5", ["P = 6/10 = 3/5", "So $x = 0.6$.", "\\boxed{\\frac{3}{5}}"], Fraction(3, 5)),
        ("1/4", ["The answer is 1/4.", "\\boxed{\\frac14}", "So it is $\\frac{2}{8}$.", "The answer is 0.25."], Fraction(1, 4)),
        ("2\\sqrt{2}", ["\\boxed{\\sqrt{8}}", "The answer is 2√2.", "$2\\sqrt{2}$"], None),
        ("x^2-1", ["\\boxed{(x-1)(x+1)}", "The answer is $x^2 - 1$.", "x^2-1"], None),
        ("\\{1, 2\\}", ["\\boxed{2, 1}", "\\boxed{\\{1,2\\}}"], None),
        ("1800", ["The answer is $1,800.", "It is 1800 dollars", "#### 1800.0"], Decimal(1800)),
        ("12 cm", ["12 cm", "The answer is 12.", "\\boxed{12\\text{ cm}}"], Decimal(12)),
    ],
)
def test_equal_answers_are_equal_in_a_vote(answer: str, responses: list[str], value: object) -> None:
    found = {comparable_answer(problem(answer), response) for response in responses}
    assert len(found) == 1 and None not in found
    assert value is None or found == {value}


def test_choices_are_equal_in_a_vote_by_letter_or_text() -> None:
    votes = Counter(comparable_answer(MULTIPLE_CHOICE, r) for r in ("B", "(B) Saturn", "Saturn!", "The answer is b", "Mars"))
    assert votes == {"B": 4, "A": 1}


def test_a_list_counts_in_its_order_where_the_question_asks_for_one() -> None:
    roots = problem("1, 2, 3", "What are the roots?")
    in_order = problem("1, 2, 3", "Sort 3, 1, 2 in ascending order.")
    assert is_correct(roots, "\\boxed{3, 1, 2}") and not is_correct(in_order, "\\boxed{3, 1, 2}")
    assert is_correct(roots, "\\boxed{1, 2, 3}") and is_correct(in_order, "\\boxed{1, 2, 3}")


def test_a_letter_without_a_list_of_choices_is_judged_too() -> None:
    assert is_correct(problem("G"), "The answer is (G).") and not is_correct(problem("G"), "The answer is (A).")


@pytest.mark.parametrize("answer", ["1/4", "\\frac{1}{4}", "x+1", "(1,2)", "12 cm", "25%", "B"])
def test_what_is_extracted_stands_in_the_response(answer: str) -> None:
    for response in (
        f"The answer is {answer}.",
        f"So $x$ is known.\nThe answer is:\n\\[\n{answer}\n\\]",
        f"\\boxed{{{answer}}}",
    ):
        assert (extract_answer(problem(answer), response) or "missing") in response


def test_expressions_are_judged_in_any_thread() -> None:
    found: list[bool | None] = []
    thread = threading.Thread(target=lambda: found.append(is_correct(problem("1/2"), "The answer is 0.5.")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^9}}",
        "((10^{999})^{999})^{999}",
        "(a+b+c+d+f)^{50}",
        "99999!!",
        "\\int_0^1 e^{-x^2} \\sin(x)/x dx",
        "\\sum_{i=1}^{999999999} i!",
        "(" * 60 + "1" + ")" * 60,
        "\\sqrt{" * 40 + "2" + "}" * 40,
        "1" * 5000,
        "1 " * 5000,
        "1+" * 2000 + "1",
        "2^" * 1000,
    ],
)
def test_no_expression_takes_for_ever(bomb: str) -> None:
    for asked in (problem("1/2"), problem("x^2"), problem("7")):
        assert is_correct(asked, f"\\boxed{{{bomb}}}") is False
        comparable_answer(asked, f"\\boxed{{{bomb}}}")


@pytest.mark.parametrize(
    "unit",
    [" ", "= ", "1 ", "$", "\\(", "answer is ", "**", "{", "\\boxed{", "(A) ", "A. Mars\n", "not ", "1/2 or ", "12,", "1_000"],
)
def test_no_response_takes_for_ever(unit: str) -> None:
    for asked in (problem("1/2"), problem("\\sqrt{2}"), problem("12 cm"), problem("C"), MULTIPLE_CHOICE):
        extract_answer(asked, unit * (20_000 // len(unit)) + "42")
        extract_answer(asked, "The answer is 7 " + unit * (20_000 // len(unit)) + "y B 1/2 false")


pieces = st.sampled_from(
    [
        "1/2",
        "\\frac{1}{2}",
        "$",
        "\\boxed{",
        "}",
        "{",
        "x",
        "=",
        "^",
        "(",
        ")",
        ",",
        " or ",
        " is ",
        "answer",
        ".",
        "\n",
        "B",
        "\\text{",
        "%",
        "0",
        "!",
    ]
)
golds = st.sampled_from([gold for gold, _, _ in NUMBERS + EXPRESSIONS] + ["B", "Paris", "yes"])


@settings(max_examples=150, deadline=None)
@given(gold=golds, response=st.lists(pieces, max_size=12).map("".join) | st.text(max_size=40))
def test_any_response_is_judged(gold: str, response: str) -> None:
    asked = problem(gold)
    assert is_correct(asked, response) in (True, False)
    value = comparable_answer(asked, response)
    assert value is None or value in {value}, "it can be counted"
    if extract_answer(asked, response) is None:
        assert is_correct(asked, response) is False


@pytest.mark.parametrize(
    ("answer", "fraction"), [("0.5", "1/2"), ("2.5", "\\frac{5}{2}"), ("2", "4/2"), ("-0.75", "-3/4"), ("3", "√9")]
)
def test_a_fraction_is_judged_alike_announced_or_alone(answer: str, fraction: str) -> None:
    for response in (f"The answer is {fraction}.", fraction, f"**{fraction}**", f"${fraction}$.", f"We try 7.\n\n{fraction}"):
        assert is_correct(problem(answer), response), response
        assert not is_correct(problem("11"), response), response
        assert comparable_answer(problem(answer), response) == Decimal(answer)
    assert is_correct(problem(answer), f"Thus x = {fraction}.")


def judged_alike(asked: Problem, right: list[str], wrong: list[str]) -> None:
    """The right ones are right and equal in a vote, the wrong ones neither."""
    best = comparable_answer(asked, f"The answer is {asked.answer}.")
    for value in right:
        response = f"The answer is {value}."
        assert is_correct(asked, response) is True and comparable_answer(asked, response) == best, value
    for value in wrong:
        response = f"The answer is {value}."
        assert is_correct(asked, response) is False and comparable_answer(asked, response) != best, value


@pytest.mark.parametrize(
    ("answer", "question", "right", "wrong"),
    [
        ("10", "What percentage is left?", ["10%", "10"], ["0.1", "0.1%"]),
        ("0.5", "What is it in percent?", ["0.5%", "0.5"], ["50%", "50"]),
        ("0.1", "What is the chance?", ["10%", "0.1", "1/10"], ["0.1%", "10"]),
        ("0.1", "10% win. What is the chance?", ["10 percent"], ["0.1%"]),
        ("40", "How much is it?", ["40%"], ["0.4", "4000%", "0.4%"]),
        ("1", "What is the chance?", ["100%"], ["1%"]),
        ("25%", "?", ["25%", "25", "0.25", "1/4", "25 percent"], ["0.25%", "2.5", "25‰"]),
        ("0.5%", "?", ["0.5", "0.50%"], ["5%", "50"]),
    ],
)
def test_a_percentage_is_read_in_one_way(answer: str, question: str, right: list[str], wrong: list[str]) -> None:
    judged_alike(problem(answer, question), right, wrong)


@pytest.mark.parametrize(
    ("answer", "question", "right", "wrong"),
    [
        ("512", "?", ["5.12 × 10^2", "$5.12 \\times 10^{2}$", "5120 * 10^-1"], ["512 million", "512 thousand", "512 dozen"]),
        ("3000000", "?", ["3 million", "3,000,000", "3'000'000", "3_000_000", "30,00,000", "3e6"], ["3", "3 billion"]),
        ("7", "How many million people?", ["7 million", "7"], ["7 thousand", "7000000"]),
        ("3 liters", "?", ["3 litres", "3 l", "3"], ["3 gallons", "3 ml"]),
        ("8 kg", "?", ["8 kilograms", "8"], ["8 tonnes", "8 g"]),
        ("2 hours", "?", ["2 h", "2.0 hours"], ["2 minutes", "2 days"]),
        ("$12", "?", ["12 dollars", "$12.00"], ["€12", "12 cents"]),
        ("60^\\circ", "?", ["60°", "60 degrees", "60"], ["60 radians"]),
        ("3\\pi \\text{ cm}", "?", ["$3\\pi$ cm", "$3\\pi$"], ["$3\\pi \\text{ m}$"]),
        ("0.1", "?", ["0.10", "1/10"], ["0.1000000000000001"]),
    ],
)
def test_scales_and_units_are_not_contradicted(answer: str, question: str, right: list[str], wrong: list[str]) -> None:
    judged_alike(problem(answer, question), right, wrong)


@pytest.mark.parametrize(
    ("answer", "question", "right", "wrong"),
    [
        ("\\frac12", "?", ["0.5", "$\\frac{2}{4}$", "$50\\%$"], ["2", "1/3"]),
        ("27_8", "?", ["$27_8$", "$27_{8}$"], ["27", "$27_{10}$", "$26_8$"]),
        ("110_2", "Write 6 in base 2.", ["110", "$110_{2}$"], ["$110_3$", "6"]),
        ("110", "Write 6 in binary.", ["110", "$110_2$"], ["6"]),
        ("(3, 4)", "?", ["$(3,4)$", "$\\left(3, 4\\right)$"], ["$\\{3, 4\\}$", "$(4,3)$"]),
        ("\\{3, 4\\}", "?", ["$\\{4,3\\}$"], ["$(3, 4)$"]),
        ("x>3", "?", ["$x>3$", "$3<x$"], ["$x<3$", "$x\\ge 3$"]),
        ("0.5x", "?", ["$\\frac{x}{2}$"], ["$5x$"]),
        ("y = 3x - 1", "?", ["$3x-1=y$"], ["$3x+1=y$"]),
        ("x \\in (0, 5)", "?", ["$(0,5)$"], ["$[0,5)$"]),
        ("73512", "?", ["73 512"], ["73 513"]),
    ],
)
def test_expressions_are_equal_in_a_vote_as_they_are_judged(
    answer: str, question: str, right: list[str], wrong: list[str]
) -> None:
    judged_alike(problem(answer, question), right, wrong)
    assert is_correct(problem("\\{3, 4\\}"), "The answer is 3, 4.")


def test_numbers_too_large_to_be_written_out_are_judged() -> None:
    for response in ("1e5 × 10^3", "9e9999 trillion", "1e99999999999999999999", "2 × 10^9999", "1 × 10^-9999"):
        assert is_correct(problem("7"), response) is False
        comparable_answer(problem("7"), response)
        comparable_answer(problem("\\frac12"), response)


@pytest.mark.parametrize(
    "response",
    [
        *("We can rule out {}.", "That rules out {}.", "I excluded {}.", "Eliminating {} leaves three."),
        *("Vitamin {} is irrelevant.", "Point {} lies on the line.", "Dr. {} said so.", "Plan {} failed."),
    ],
)
def test_a_letter_that_is_ruled_out_or_a_name_is_no_choice(response: str) -> None:
    for letter in "ABCD":
        assert extract_answer(problem(letter), response.format(letter)) is None
        assert extract_answer(MULTIPLE_CHOICE, response.format(letter)) is None


def test_a_name_is_a_choice_where_the_question_asks_for_it() -> None:
    assert is_correct(problem("B", "Which point is highest?"), "It is point B.")
    assert is_correct(problem("C", "Which vitamin helps?"), "Vitamin C, of course.")


@pytest.mark.parametrize("response", ["A Roman would know.", "A 3-digit number", "A Greek letter", "A good start"])
def test_an_article_is_no_choice(response: str) -> None:
    assert is_correct(problem("A"), response) is False


@pytest.mark.parametrize(
    "response", ["A", "A is right.", "A\n\nExplanation: it fits.", "A The others are wrong.", "A Because it fits."]
)
def test_an_a_alone_is_a_choice(response: str) -> None:
    assert is_correct(problem("A"), response) is True


def test_a_yes_that_would_be_is_none() -> None:
    for response in ("No. A yes would need more.", "No, yes would contradict it."):
        assert is_correct(problem("yes"), response) is False and is_correct(problem("no"), response) is True
    assert is_correct(problem("yes"), "It is a yes.") is True


@pytest.mark.parametrize("name", ["Paris", "New York", "the Nile"])
def test_free_text_is_what_it_is_said_to_be(name: str) -> None:
    asked = problem(name)
    for response in (
        f"The place is **{name}**.",
        f"It's {name}.",
        f"We look.\nIt is {name}.",
        f"**{name}**",
        f"That was {name}",
    ):
        assert is_correct(asked, response) is True and comparable_answer(asked, response) == comparable_answer(asked, name)
    for response in (
        f"It isn't **{name}**.",
        f"It's not {name}.",
        f"It's near {name}.",
        f"**{name}** is not far from **Rome**.",
    ):
        assert is_correct(asked, response) is False
