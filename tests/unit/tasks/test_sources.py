"""One set of problems, written in every form, is read as the same; what can't be read is named with its place."""

from __future__ import annotations

import builtins
import csv
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tl_l2norm.tasks.problems import Problem
from tl_l2norm.tasks.sources import load_problems
from tl_l2norm.tasks.verifiers import is_correct

RECORDS = [
    {"question": "What is 17 + 25, in words\u2028or digits?", "answer": "42", "level": 2},
    {"question": 'Say "yes",\nthen no; or é?', "answer": "yes", "level": 1},
    {"question": "Nobody knows", "answer": None, "level": 3},
]


def jsonl(records: list[Any]) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def csv_text(records: list[dict[str, Any]], delimiter: str) -> str:
    lines: list[str] = []
    writer = csv.writer(type("Sink", (), {"write": staticmethod(lines.append)}), delimiter=delimiter)
    writer.writerow(records[0])
    writer.writerows(record.values() for record in records)
    return "".join(lines)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def parquet(path: Path) -> Path:
    pd.DataFrame(RECORDS).to_parquet(path)
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda p: write(p / "a.jsonl", jsonl(RECORDS)),
    "jsonl of Windows": lambda p: write(
        p / "a.jsonl", b"\xef\xbb\xbf" + jsonl(RECORDS).replace("\n", "\r\n").encode() + b"\r\n"
    ),
    "jsonl of PowerShell": lambda p: write(p / "a.jsonl", (jsonl(RECORDS) + "\r\n").encode("utf-16")),
    "json lines": lambda p: write(p / "a.json", jsonl(RECORDS)),
    "json": lambda p: write(p / "a.json", json.dumps(RECORDS, indent=2)),
    "json in an object": lambda p: write(p / "a.json", json.dumps({"version": 1, "examples": RECORDS})),
    "csv": lambda p: write(p / "a.csv", csv_text(RECORDS, ",")),
    "csv of Excel": lambda p: write(p / "a.csv", b"\xef\xbb\xbf" + csv_text(RECORDS, ";").encode()),
    "tsv": lambda p: write(p / "a.TSV", csv_text(RECORDS, "\t").encode("utf-16")),
    "parquet": lambda p: parquet(p / "a.parquet"),
    "DataFrame": lambda p: pd.DataFrame(RECORDS),
    "Dataset": lambda p: datasets.Dataset.from_list(RECORDS),
    "list": lambda p: RECORDS,
    "upper case": lambda p: [{name.upper(): value for name, value in record.items()} for record in RECORDS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_problems(form: str, tmp_path: Path) -> None:
    problems = load_problems(FORMS[form](tmp_path))
    assert [{"question": p.question, "answer": p.answer, "level": p.level} for p in problems] == RECORDS


def one(**record: Any) -> Problem:
    (problem,) = load_problems([record])
    return problem


CHOICES = "Which?\nA. ice\nB. steam\nC. water"


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"question": "q", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}, "q", "5"),
        (
            {"problem": "p", "solution": "so $\\boxed{\\frac{1}{2}}$.", "level": "Level 4", "type": "Algebra"},
            "p",
            "\\frac{1}{2}",
        ),
        ({"Problem": "p", "Answer": 204, "ID": 3}, "p", "204"),
        ({"Which?": 1, "question": "Which?", "choices": ["ice", "steam", "water"], "answer": 2}, CHOICES, "C"),
        ({"question": "Which?", "choices": ["ice", "steam", "water"], "answer": "2"}, CHOICES, "C"),
        ({"question": "Which?", "choices": ["ice", "steam", "water"], "answer": "Steam"}, CHOICES, "B"),
        ({"question": "Which?", "choices": np.array(["ice", "steam", "water"]), "answer": np.int64(0)}, CHOICES, "A"),
        ({"question": "Which?", "options": ["A)ice", "B)steam", "C)water"], "answer": "(c)"}, CHOICES, "C"),
        ({"question": "Which?", "A": "ice", "B": "steam", "C": "water", "D": None, "answer": "B"}, CHOICES, "B"),
        (
            {"question": "Which?", "choices": {"text": ["ice", "steam", "water"], "label": ["1", "2", "3"]}, "answerKey": "3"},
            CHOICES,
            "C",
        ),
        (
            {
                "question": "Which?",
                "choices": [{"label": c, "text": t} for c, t in zip("ABC", ["ice", "steam", "water"], strict=True)],
            },
            CHOICES,
            None,
        ),
        ({"question": CHOICES, "choices": ["ice", "steam", "water"], "answer": 1}, CHOICES, "B"),
        ({"input": "Is it?\nOptions:\n(A) yes\n(B) no", "target": "(B)"}, "Is it?\nOptions:\n(A) yes\n(B) no", "B"),
        ({"instruction": "Count the words.", "input": "a b c", "answer": 3}, "Count the words.\n\na b c", "3"),
        ({"instruction": "Count to three.", "input": "", "answer": "1 2 3"}, "Count to three.", "1 2 3"),
        ({"prompt": [{"role": "user", "content": "q"}], "ground_truth": "7"}, "q", "7"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Well.\n#### 7"}]}, "q", "7"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "answer": True}, "q", "true"),
        ({"question": "q", "label": 3.0}, "q", "3"),
        ({"question": "q", "answer": float("nan")}, "q", None),
        ({"question": "q", "answer": pd.NA}, "q", None),
    ],
)
def test_columns_of_public_data_sets(record: dict[str, Any], question: str, answer: str | None) -> None:
    problem = one(**record)
    assert (problem.question, problem.answer) == (question, answer)
    assert problem.option_texts in ((), ("ice", "steam", "water"), ("yes", "no"))


def test_a_level_in_words_is_one() -> None:
    assert one(question="q", level="Level 4").level == 4 and one(question="q", level=None).level == 1


def test_a_system_message_is_kept() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    assert one(messages=chat).system == one(question="q", system="Be brief.").system == "Be brief."


def test_a_choice_is_judged_by_letter_and_text() -> None:
    problem = one(question="Which?", choices=["ice", "steam", "water"], answer=1)
    assert is_correct(problem, "The answer is (B).") and is_correct(problem, "steam") and not is_correct(problem, "water")


def test_where_several_columns_could_be_meant_it_is_said_which_is_read() -> None:
    records = [{"question": "q", "prompt": "p", "answer": "a", "target": "t", "passage": "x"}]
    with pytest.warns(
        UserWarning, match="from the column 'question', not from 'prompt'.*'answer', not from 'target'.*'passage' is not"
    ):
        (problem,) = load_problems(records)
    assert (problem.question, problem.answer) == ("q", "a")
    records[0].pop("passage")
    (problem,) = load_problems(records, question="Prompt", answer="target")
    assert (problem.question, problem.answer) == ("p", "t")


def test_answers_that_are_not_read_are_said() -> None:
    with pytest.warns(UserWarning, match="no answers are read, from 'anwser' neither"):
        load_problems([{"question": "q", "anwser": "a"}])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"question": "a"}\n{"question": "Fünf"}'.encode("latin-1"), "line 2: the byte 0xfc is not UTF-8"),
        ("a.csv", "question\nok\nFünf\n".encode("cp1252"), "line 3: the byte 0xfc is not UTF-8"),
        ("a.jsonl", '{"question": "a"}'.encode("utf-16-le"), "line 1: a NUL character"),
        ("a.jsonl", b"\xff\xfe{", "line 1: the byte 0x7b is not UTF-16"),
        ("a.json", '[{"question": "a"},\n {"question": }]', r"line 2: not JSON \(Expecting value at column 15\)"),
        ("a.json", '["a", "b"]', "row 1: expected an object"),
        ("a.jsonl", '{"question": "a"}\n"b"', 'line 2: expected an object, got "b"'),
        ("a.csv", "question,answer\na,1\nb,2,3\n", "line 3: 3 cells where the first line names 2 columns"),
        ("a.csv", 'question,answer\n"a\nb",1\nc,"2\n', "line 4: not CSV"),
        ("a.csv", "question;answer\na;1,5\n", "line 2: 1,5 has a decimal comma: write 1.5"),
        ("a.csv", 'question,answer\n"a\nb",1\n"a\nb",2\n', "line 4: same question as line 2"),
        ("a.csv", "question,question\na,b\n", "line 1: two columns have the same name"),
        ("a.csv", "What is 2 + 2?,4\nWhat is 3 + 3?,6\n", "no column has the questions"),
        ("a.csv", "", "holds no problems"),
        ("a.tsv", "question\tchoices\nq\t['a' 'b']\n", "line 2: choices must be a list"),
        ("a.parquet", "question", "not Parquet"),
        ("a.jsonl.gz", b"\x1f\x8b", "unpack it"),
        ("a.xlsx", b"PK", "save it as one of .jsonl"),
        (
            "a.jsonl",
            jsonl([{"question": "q", "choices": ["a", "b"], "answer": 2}]),
            "line 1: the answer '2' means none of the 2",
        ),
        ("a.jsonl", jsonl([{"question": "q", "choices": ["0", "2", "1"], "answer": "1"}]), "means B and C of the 3 choices"),
        ("a.jsonl", jsonl([{"question": "q", "choices": ["a"], "answer": 0}]), "at least two"),
        ("a.jsonl", jsonl([{"question": "q", "answer": "w " * 50}]), "line 1: the answer is a text of 50 words"),
        ("a.jsonl", jsonl([{"question": "q", "answer": ["a", "b"]}]), "line 1: answer must be text"),
        ("a.jsonl", '{"question": "q", "answer": Infinity}', "line 1: answer must be text"),
        ("a.jsonl", jsonl([{"messages": [{"role": "user", "content": c} for c in "ab"]}]), "one user message, not 2"),
        ("a.jsonl", jsonl([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]), "must be text"),
        ("a.jsonl", jsonl([{"messages": [{"role": "system", "content": "s"}]}]), "one user message, not 0"),
        ("a.jsonl", jsonl([{"messages": ["hello"]}]), "a message has a role"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(name: str, data: str | bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))}.*{message}"):
        load_problems(path)


@pytest.mark.parametrize("source", [{"question": ["a"]}, pd.Series(["a"]), ["a"], 5, None, b"a"])
def test_what_is_no_table_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="rows|row 1|a path"):
        load_problems(source)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no column 'awnser'. Did you mean 'answer'\?"):
        load_problems([{"question": "q", "answer": "a"}], answer="awnser")


def test_without_pyarrow_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet")
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        load_problems(path)


@pytest.mark.parametrize(("index", "letter"), [(1, "B"), (np.int64(0), "A"), (3, "D")])
def test_a_number_is_the_index_of_a_choice_even_where_a_choice_is_that_number(index: Any, letter: str) -> None:
    record = {"question": "How many?", "choices": ["0", "120", "1", "3"], "answer": index}
    assert load_problems([record])[0].answer == letter
    with pytest.raises(ValueError, match="means B and C"):
        load_problems([record | {"answer": "1"}])
    assert load_problems([record | {"answer": 120}])[0].answer == "B"


@pytest.mark.parametrize("name", ["a.txt", "a.bin", "notes"])
@pytest.mark.parametrize("data", [b"What is 2 + 2?\n4\n", b"\x80\x04\x95\x00", b"PK\x03\x04\x00"])
def test_a_file_with_another_ending_that_is_no_jsonl_names_the_known_endings(name: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"endings that are known are \.jsonl, \.json, \.csv, \.tsv and \.parquet"):
        load_problems(write(tmp_path / name, data))
    assert len(load_problems(write(tmp_path / name, b'{"question": "q", "answer": 1}'))) == 1


def test_messages_about_columns_say_what_to_do_on_the_command_line_too() -> None:
    with pytest.raises(ValueError, match=r"rename the column, or name it with load_problems\(\.\.\., question=\.\.\.\)"):
        load_problems([{"query": "q", "answer": 1}])
    with pytest.warns(UserWarning, match=r"rename the column, or name it with load_problems\(\.\.\., answer=\.\.\.\)"):
        load_problems([{"question": "q", "answer": 1, "target": 2}])


HALF = r"\ud800"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"question": "What is {HALF}?", "answer": 1}}',
        f'{{"question": "q", "answer": "a {HALF}"}}',
        f'{{"question": "q", "answer": "A", "choices": ["one", "two {HALF}"]}}',
        f'{{"question": "q", "answer": 1, "system": "{HALF}"}}',
        f'{{"question": "q", "answer": 1, "family": "{HALF}"}}',
        f'{{"messages": [{{"role": "user", "content": "{HALF}"}}]}}',
    ],
)
def test_half_a_character_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", line.encode())
    with pytest.raises(ValueError, match=r"own\.jsonl, line 1: .* lone surrogate, '\\ud800'"):
        load_problems(path)


@pytest.mark.parametrize("kept", [{"system": 5}, {"system": ["a"]}, {"source": 5}, {"source": None}, {"options": 5}])
def test_a_problem_of_something_else_than_texts_is_refused(kept: dict[str, Any]) -> None:
    unchecked: Any = inspect.unwrap(Problem.__init__)  # what a user calls: the type checker of the tests is in the way
    with pytest.raises(TypeError, match=f"{next(iter(kept))} (must be|are a)"):
        unchecked(object.__new__(Problem), question="q", answer=None, family="custom", **kept)


@pytest.mark.parametrize(
    "choices", [[1, 2, 3], [2, 3, 1], [1.0, 2.0, 3.0], np.array([1, 2, 3]), np.array([3, 2, 1], dtype="float32")]
)
def test_a_number_among_choices_that_are_numbers_is_as_ambiguous_as_its_text(choices: Any) -> None:
    for answer in (1, "1", np.int64(1), 1.0):
        with pytest.raises(ValueError, match="the answer '1' means [A-C] and [A-C] of the 3 choices"):
            one(question="Which?", choices=choices, answer=answer)
    assert one(question="Which?", choices=choices, answer="B").answer == "B"


@pytest.mark.parametrize(
    "choices", [["x", "x"], ["1", "2", "1 "], [4, 5, 4.0], {"text": ["x", "y", "x"], "label": ["A", "B", "C"]}]
)
def test_choices_that_are_the_same_are_refused(choices: Any) -> None:
    with pytest.raises(ValueError, match="two choices are the same"):
        one(question="Which?", choices=choices, answer="A")


@pytest.mark.parametrize("cells", [{"a": "x", "b": None}, {"a": None, "b": "y"}, {"a": "x", "b": None, "c": "z"}])
def test_a_blank_option_is_refused(cells: dict[str, Any], tmp_path: Path) -> None:
    record = {"question": "Which?", **cells, "answer": "A"}
    for source in (pd.DataFrame([record]), write(tmp_path / "a.csv", csv_text([record], ","))):
        with pytest.raises(ValueError, match="the choice in column '[ab]' is blank"):
            load_problems(source)


def test_a_row_may_leave_out_the_last_options_or_all(tmp_path: Path) -> None:
    records = [
        {"question": "q", "a": "x", "b": "y", "c": "", "answer": "B"},
        {"question": "r", "a": "", "b": "", "c": "", "answer": "7"},
    ]
    first, second = load_problems(write(tmp_path / "a.csv", csv_text(records, ",")))
    assert (first.option_texts, first.answer, second.options, second.answer) == (("x", "y"), "B", (), "7")


NARROW = {"question": ["p", "q", "r"], "answer": np.array([0.1, 2.5, 1 / 3], dtype="float32")}


@pytest.mark.parametrize(
    "form",
    {
        "DataFrame": lambda p: pd.DataFrame(NARROW),
        "nullable": lambda p: pd.DataFrame(NARROW).astype({"answer": "Float32"}),
        "Dataset": lambda p: datasets.Dataset.from_dict(NARROW),
        "parquet": lambda p: pd.DataFrame(NARROW).to_parquet(p / "a.parquet") or p / "a.parquet",
        "list": lambda p: [dict(zip(NARROW, record, strict=True)) for record in zip(*NARROW.values(), strict=True)],
    }.values(),
)
def test_numbers_of_single_precision_are_what_was_meant(form: Callable[[Path], Any], tmp_path: Path) -> None:
    assert [p.answer for p in load_problems(form(tmp_path))] == ["0.1", "2.5", "0.33333334"]


def test_choices_of_single_precision_too(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["q"], "choices": [np.array([0.1, 0.7], dtype="float32")], "answer": ["0.7"]})
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet", datasets.Dataset.from_pandas(frame)):
        assert load_problems(source)[0].option_texts == ("0.1", "0.7")


def test_a_reference_does_not_hold_what_was_thought() -> None:
    assert [one(question="q", answer=f"<think>x is 7</think>{a}").answer for a in ("12", "\n\n12\n", "So it is\n#### 12")] == [
        "12"
    ] * 3
    with pytest.raises(ValueError, match="begins a thought and never ends it"):
        one(question="q", answer="<think>x is 7")
    with pytest.raises(ValueError, match="answer must be text"):
        one(question="q", answer="<think>x is 7</think> ")


@pytest.mark.parametrize("column", ["solution", "answer", "target"])
@pytest.mark.parametrize(
    "text", ["We add: 5+7=12. So he has 12.", "5 and 7 are 12! He has 12 now", "He takes 5 + 7 = 12 steps"]
)
def test_a_worked_solution_without_a_mark_is_warned_of(column: str, text: str) -> None:
    records = [{"question": "p", column: "Paris"}, {"question": "q", column: text}]
    with pytest.warns(UserWarning, match=r"the table, row 2: the answer is a worked solution.*\(1 such rows\).*'#### 12'"):
        problems = load_problems(records)
    assert [p.answer for p in problems] == ["Paris", text]


@pytest.mark.parametrize(
    "text", ["The man who was on the moon", "x = 4", "Paris, France.", "12 apples and 3 pears\n", "5+7=12. #### 12"]
)
def test_an_answer_of_words_is_not(text: str) -> None:
    assert one(question="q", answer=text).answer in (text, "12")


def test_two_columns_of_a_name_in_a_table_are_refused() -> None:
    frame = pd.DataFrame([["p", "q", "1"]], columns=["question", "question", "answer"])
    for table in (frame, frame.set_axis(["Question", "question ", "answer"], axis=1)):
        with pytest.raises(ValueError, match="two columns have the same name"):
            load_problems(table)


def test_choices_of_a_data_set_are_read_from_a_table_as_from_its_file(tmp_path: Path) -> None:
    cell = {"text": np.array(["ice", "steam", "water"], dtype=object), "label": np.array(["1", "2", "3"], dtype=object)}
    frame = pd.DataFrame({"question": ["Which?"], "choices": [cell], "answerKey": ["3"]})
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet", pd.read_parquet(tmp_path / "a.parquet")):
        assert load_problems(source)[0].question == CHOICES and load_problems(source)[0].answer == "C"


@pytest.mark.parametrize(
    ("name", "typo"), [("answer", "anwser"), ("choices", "choises"), ("family", "famly"), ("level", "levl")]
)
def test_a_name_that_is_misspelt_in_one_row_is_refused(name: str, typo: str) -> None:
    record = {"question": "q", "choices": ["ice", "steam"], "answer": "A", "family": "f", "level": 2}
    records = [
        record,
        {("question" if key == "question" else typo if key == name else key): value for key, value in record.items()},
    ]
    records[1]["question"] = "r"
    with pytest.raises(ValueError, match=f"the table, row 2: no '{name}', which other rows have, but '{typo}'"):
        load_problems(records)


def test_rows_may_have_columns_of_their_own() -> None:
    records = [
        {"question": "p", "answer": "1", "answers": ["1"]},
        {"question": "q", "answers": ["2"]},
        {"question": "r", "source": "x"},
    ]
    assert [p.answer for p in load_problems(records)] == ["1", None, None]


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.jsonl", '{"question": "p"}\n{"question": "q", "answer": 1, "answer": 2}', "line 2"),
        ("a.json", '[{"question": "q", "answer": 1, "answer": 2}]', "a.json"),
        ("a.jsonl", '{"question": "q", "choices": {"text": ["a", "b"], "text": ["b", "a"]}}', "line 1"),
    ],
)
def test_a_key_that_stands_twice_in_an_object_is_refused(name: str, data: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{place}: an object has the key '(answer|text)' twice"):
        load_problems(write(tmp_path / name, data))


@pytest.mark.parametrize("column", ["correct_option", "correct_choice", "answers", "gold"])
def test_columns_that_look_like_answers_are_said_not_to_be_read(column: str) -> None:
    with pytest.warns(UserWarning, match=f"no answers are read, from '{column}' neither"):
        load_problems([{"question": "q", column: "A"}])


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "no/such.csv"])
def test_a_text_that_is_no_path_is_no_file(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="no problems at"):
        load_problems(source)
