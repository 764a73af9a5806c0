"""Responses in the styles of public data sets against judgements by hand, and laws of judging."""

from __future__ import annotations

import threading
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.answer_samples import EXPRESSIONS, MULTIPLE_CHOICE, NUMBERS, name_of, samples
from tl_l2norm.core.errors import InputTypeError
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
    forms = {comparable_answer(problem(answer), response) for response in responses}
    assert len(forms) == 1 and None not in forms
    assert value is None or forms == {value}


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
    verdicts: list[bool | None] = []
    thread = threading.Thread(target=lambda: verdicts.append(is_correct(problem("1/2"), "The answer is 0.5.")))
    thread.start()
    thread.join()
    assert verdicts == [True]


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
        "(10^9)!",
        "(2^{40})!",
        "\\Gamma(10^9)",
        "((10!)!, 3)",
        "(10^9)! < 3",
        "\\binom{10^9}{5\\cdot 10^8}",
        "\\gcd((10^9)!, 8)",
        "(a+b+c+d+f+g+h+k+l)^{10}",
        "".join(f"({letter}+1)" for letter in "xyzabcdfghjklmnpqrstu"),
        "\\frac{1}{(a+b+c+d)^{10}(a-b)}",
        "(\\sqrt2+\\sqrt3+\\sqrt5+\\sqrt7)^{2000}",
        "(\\sin 1+\\cos 1+\\pi)^{200}",
        "\\exp(\\exp(\\exp(100)))",
        "\\lfloor (10^9)! \\rfloor",
        "|\\binom{y}{1000}|",
        "\\binom{1}{\\sqrt{2}}+\\binom{10^9}{\\frac12}",
        "e^{e^{e^{e^e}}}",
        "\\begin{pmatrix}a&b\\\\c&d\\end{pmatrix}^{99}",
    ],
)
def test_no_expression_takes_for_ever(bomb: str) -> None:
    for asked in (problem("1/2"), problem("x^2"), problem("7")):
        assert is_correct(asked, f"\\boxed{{{bomb}}}") is False
        comparable_answer(asked, f"\\boxed{{{bomb}}}")


@pytest.mark.parametrize(
    "unit",
    [
        " ",
        "= ",
        "1 ",
        "$",
        "\\(",
        "answer is ",
        "**",
        "{",
        "\\boxed{",
        "(A) ",
        "A. Mars\n",
        "not ",
        "1/2 or ",
        "12,",
        "1_000",
        "\n",
        "no, ",
    ],
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


@pytest.mark.parametrize(
    ("answer", "question", "right", "wrong"),
    [
        ("10^{-20}", "?", ["$10^{-20}$", "$\\frac{1}{10^{20}}$"], ["$10^{-30}$", "0"]),
        ("1/2^{60}", "?", ["$2^{-60}$", "1/1152921504606846976"], ["$1/2^{61}$", "1/1152921504606846977"]),
        ("1/52!", "?", ["$\\frac{1}{52!}$"], ["$1/51!$"]),
        ("(10^{-20}, 1)", "?", ["$(10^{-20}, 1)$"], ["$(10^{-30}, 1)$"]),
        ("x+10^{-20}", "?", ["$10^{-20}+x$"], ["$x+10^{-30}$", "$x$"]),
        ("|x|", "?", ["$|x|$"], ["$x$", "$-x$"]),
        ("f'(x)=2x", "?", ["$f'(x)=2x$", "$2x$"], ["$f'(x)=3x$"]),
        ("1 2 3", "?", ["1 2 3", "$1, 2, 3$"], ["123", "1 2 4", "6"]),
        ("1,2,2", "?", ["$2,1,2$"], ["$1,2$", "$1,1,2$"]),
        ("a=1, b=2", "?", ["$a=1, b=2$"], ["$2, 1$", "$a=2, b=1$", "1"]),
        ("x+y=3", "?", ["$x+y=3$", "$y+x=3$"], ["3", "$x-y=3$"]),
        ("[0,1)\\cup(2,3]", "?", ["$(2,3]\\cup[0,1)$"], ["$[0,1]\\cup(2,3]$"]),
        ("½", "?", ["1/2", "½", "0.5"], ["⅓", "2"]),
        ("343", "?", ["3.43 × 10²", "$7^3$"], ["3.43 × 10³", "34.3 × 10²"]),
    ],
)
def test_values_are_equal_exactly_and_in_their_order(answer: str, question: str, right: list[str], wrong: list[str]) -> None:
    judged_alike(problem(answer, question), right, wrong)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("\\sqrt2", ["\\sqrt{2}", "\\frac{2}{\\sqrt2}", "1.4142136"], ["\\sqrt2+10^{-20}", "1.414", "-\\sqrt2"]),
        ("e^{-50}", ["\\frac{1}{e^{50}}"], ["e^{-60}", "0"]),
        ("\\cos(\\pi/5)", ["\\frac{1+\\sqrt5}{4}"], ["\\frac{1+\\sqrt5}{5}"]),
        ("{1,2}", ["\\{2,1\\}"], ["(1,2)", "[1,2]"]),
        ("(1,2)", ["(1,2)"], ["\\{1,2\\}", "[1,2]", "(2,1)"]),
        ("1 < x < 2", ["(1,2)", "2 > x > 1"], ["[1,2]", "1 < x"]),
        ("n(n-1)/2", ["\\binom{n}{2}"], ["\\binom{n}{3}"]),
        ("x+y=3", ["2x+2y=6", "x = 3-y"], ["x+y=6", "x+y<3"]),
        ("2x < 3", ["3 > 2x", "4x < 6"], ["2x > 3", "-2x < -3"]),
    ],
)
def test_values_are_equal_however_they_are_written(answer: str, right: list[str], wrong: list[str]) -> None:
    for value in right:
        assert is_correct(problem(answer), f"\\boxed{{{value}}}") is True, value
    for value in wrong:
        assert is_correct(problem(answer), f"\\boxed{{{value}}}") is False, value


def test_a_decimal_of_a_number_is_right_from_six_digits_on() -> None:
    assert is_correct(problem("\\pi"), "\\boxed{3.14159}") and not is_correct(problem("\\pi"), "\\boxed{3.1416}")
    assert is_correct(problem("\\frac13"), "\\boxed{0.333333}") and not is_correct(problem("\\frac14"), "\\boxed{0.2500001}")


@pytest.mark.parametrize(
    ("one", "other"),
    [("cm", "m"), ("m/s", "km/h"), ("cm^2", "cm^3"), ("hours", "minutes"), ("dollars", "cents"), ("kg", "g")],
)
def test_a_unit_is_not_contradicted_however_it_is_written(one: str, other: str) -> None:
    def written(unit: str) -> list[str]:
        name, caret, power = unit.partition("^")
        forms = [f"5\\text{{ {name}}}", f"5\\ \\text{{{name}}}", f"5\\,\\mathrm{{{name}}}", f"$5$ {name}", f"5 {name}"]
        return [form + caret + power for form in forms]

    for reference in written(one):
        asked = problem(reference)
        assert all(is_correct(asked, f"\\boxed{{{form}}}") for form in [*written(one), "5"])
        assert not any(is_correct(asked, f"\\boxed{{{form}}}") for form in written(other))
        assert not any(is_correct(asked, f"The answer is {form}.") for form in written(other))


CORRECTIONS = [
    "The answer is {}. Actually no, it is {}.",
    "The answer is {}. Wait, I made a mistake. It should be {}.",
    "The answer is {}. Correction: {}",
    "The answer is {}. Sorry, {}",
    "\\boxed{{{}}}\nOn second thought, {}.",
    "The answer is {}. Hmm, let me redo this. It is {}.",
    "The answer is {}. That's not right: it is {}.",
]


@pytest.mark.parametrize("response", CORRECTIONS)
@pytest.mark.parametrize(("first", "second"), [("343", "344"), ("$\\sqrt{3}$", "$\\sqrt{5}$"), ("B", "D"), ("7 cm", "9 cm")])
def test_a_correction_counts_and_not_what_it_corrects(response: str, first: str, second: str) -> None:
    said = response.format(first, second)
    assert is_correct(problem(first), said) is False
    assert is_correct(problem(second), said) is True


@pytest.mark.parametrize(
    "response",
    [
        *("I doubt that the answer is {}.", "It's impossible that the answer is {}.", "I don't think the answer is {}."),
        *("The answer is {}. That is wrong.", "The answer is {}. No, it isn't.", "The answer is {}? No."),
    ],
)
@pytest.mark.parametrize("value", ["343", "$\\sqrt{3}$", "B", "Paris"])
def test_what_is_taken_back_is_no_answer(response: str, value: str) -> None:
    assert is_correct(problem(value), response.format(value)) is False


@pytest.mark.parametrize("response", ["All but {}", "everything except {}", "{} is eliminated.", "{} has been ruled out."])
def test_a_choice_that_is_left_out_is_none(response: str) -> None:
    for letter in "ABCD":
        assert extract_answer(problem(letter), response.format(letter)) is None


def test_an_answer_that_is_confirmed_stands() -> None:
    for response in (
        "The answer is 343. I am sure.",
        "Wait, 344? No, 7*7*7 = 343.",
        "The answer is 343. Let me verify: 7^3 = 343.",
    ):
        assert is_correct(problem("343"), response) is True


@pytest.mark.parametrize(
    "given",
    [
        *("12\\pi", "$12\\sqrt{2}$", "12\\frac{1}{2}", "12 ± 1", "12 mod 5", "12 choose 3", "12 times 3", "< 12", "≠ 12"),
        *("12 squared", "12M", "12 bn", "12 lakh", "half of 12", "the square root of 12", "twice 12", "12 or more"),
        *("12 and a half", "$12!$", "12% of 30", "12 x", "12(x+1)", "\\pm 12", "f(12)"),
    ],
)
def test_a_number_in_more_mathematics_is_not_the_number(given: str) -> None:
    assert is_correct(problem("12"), f"The answer is {given}.") is False
    assert is_correct(problem("12"), f"\\boxed{{{given.strip('$')}}}") is False


@pytest.mark.parametrize(
    "said", ["12 (twelve)", "12, because 3*4 = 12", "12 times a year", "exactly 12", "12!", "12 in total", "<b>12</b>", "12"]
)
def test_a_number_among_words_is_the_number(said: str) -> None:
    assert is_correct(problem("12"), f"The answer is {said}") is True
    assert is_correct(problem("12"), "Half of 24 is 12.")


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("0.5", ["0,5"], ["5", "5,0"]),
        ("1234.56", ["1.234,56", "1.234,56 €"], ["1,234", "1.234,57"]),
        ("12.5%", ["12,5 %", "12,5%"], ["1,25 %", "125 %"]),
        ("1234", ["1,234"], ["1.234", "1,23"]),
        ("5", ["5"], ["0,5", "12,5 %"]),
    ],
)
def test_a_decimal_comma_is_read_where_nothing_else_is_meant(answer: str, right: list[str], wrong: list[str]) -> None:
    judged_alike(problem(answer), right, wrong)
    assert not is_correct(problem("1,2"), "The answer is 1.2.")


@pytest.mark.parametrize("given", ["1/2", "1.5", "1,500", "0.1", "1 + 2", "1%", "$1^2$", "-1", "√1", "2/1"])
def test_an_options_number_within_another_is_no_choice(given: str) -> None:
    asked = problem("B", "Which?\nA. 5\nB. 1\nC. 3")
    assert is_correct(asked, f"The answer is {given}") is False
    assert is_correct(asked, "The answer is 1.") and is_correct(asked, "**1**")


def test_a_thought_between_spaces_is_no_answer() -> None:
    assert is_correct(problem("12"), "The answer is 12. </think> 13") is False
    assert is_correct(problem("13"), "The answer is 12. </think> 13") is True
    assert is_correct(problem("12"), "Sure! <think> let me see. The answer is 12") is False
    for named in ("The <think> tag is not needed.", "I write no `<think>` here.", "Without the tag </think> it is short."):
        assert is_correct(problem("12"), f"{named} The answer is 12.") is True


@pytest.mark.parametrize("said", ["no", 0.01, float("nan"), 1, [], np.array([True])])
def test_a_verdict_that_is_none_is_refused(said: Any) -> None:
    asked = Problem(question="?", answer=None, family="custom", verify=lambda given: said)
    with pytest.raises(InputTypeError, match="must return True, False or None"):
        is_correct(asked, "12")


@pytest.mark.parametrize("said", [True, False, None, np.bool_(True)])
def test_a_verdict_of_ones_own_counts(said: Any) -> None:
    asked = Problem(question="?", answer=None, family="custom", verify=lambda given: said)
    assert is_correct(asked, "12") is (None if said is None else bool(said))


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(TypeError, match="verify"):
        Problem(question="?", answer="12", family="custom", verify=5)  # type: ignore[arg-type]
    for asked, said in ((None, "12"), ("?", "12"), (problem("12"), None), (problem("12"), 12), (problem("12"), problem("12"))):
        with pytest.raises(TypeError):
            is_correct(asked, said)  # type: ignore[arg-type]


def test_what_holds_an_answer_is_judged_by_it() -> None:
    class Said:
        answer = "The answer is 12."

    assert is_correct(problem("12"), Said()) is True and is_correct(problem("13"), Said()) is False
