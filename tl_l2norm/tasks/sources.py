"""Problems from elsewhere: a file, a table, or the package reasoning-gym."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tl_l2norm.core.errors import InputError, MissingPackage
from tl_l2norm.tasks.files import Record, open_table
from tl_l2norm.tasks.problems import Problem, check_count, unknown
from tl_l2norm.tasks.records import Columns, check_names, is_worked_solution, problem_of


def load_problems(source: Any, *, question: str | None = None, answer: str | None = None) -> tuple[Problem, ...]:
    r"""Problems from a file or a table, a row each.

    Files are JSONL, JSON (an array of objects), CSV, TSV or Parquet, in UTF-8 or, with a byte order mark, UTF-16. Tables are
    a pandas DataFrame, a `datasets.Dataset` or a list of dicts. Names of columns don't depend on case; what is missing or NaN
    is left out; other columns are ignored, blank lines skipped. The columns are:

    - the question: the first that the table has of `question`, `problem`, `prompt`, `messages`, `instruction` (with `input`
      below it), `input`. It is text, or a chat: its one user message, under its system message.
    - the answer: the first of `answer`, `final_answer`, `correct_answer`, `expected_answer`, `ground_truth`, `answerkey`,
      `target`, `label`, `solution`. It is text, number or true/false, or a worked solution that ends in `#### 12` or marks
      `\boxed{12}`. Where there is none, correctness is not known. (A chat's assistant message is taken where no column has
      an answer.)
    - `choices`, `options` or `endings`, a list or ARC's {"text", "label"}, or columns `a`, `b`, `c` ...: the choices, which are
      asked with the question. The answer is then a letter, a label, a choice's text or its index from 0.
    - `family` (text) and `level` (a whole number from 1 on, or "Level 3"), if you like.

    Args:
        source: A path, or a table.
        question: Name of the question's column; None is the first of the above. Where several are there, a warning says which
            one is read.
        answer: Name of the answer's column, likewise.

    Raises:
        InputError: with file and line or row: what can't be read, an answer that can't be understood, the same question twice.

    Warns:
        UserWarning: columns that could have been meant and are not read; worked solutions that mark no final answer.

    Examples:
        >>> problems = l2.load_problems(
        ...     [
        ...         {"question": "What is 17 + 25?", "answer": "17 + 25 = 42\n#### 42", "level": 2},
        ...         {"question": "Which is a planet?", "choices": ["Sun", "Mars"], "answer": "B"},
        ...     ]
        ... )
        >>> [(problem.answer, problem.option_texts) for problem in problems]
        [('42', ()), ('B', ('Sun', 'Mars'))]
    """
    table = open_table(source)
    records = list(table.records)
    if not records:
        raise InputError(f"{table.name} holds no problems")
    columns = Columns.among(records, question, answer, table.name)
    check_names(records, columns, table.name)
    if columns.not_read:
        warnings.warn(f"{table.name}: {columns.not_read}", stacklevel=2)
    name = Path(source).name if isinstance(source, str | Path) else "table"
    places: dict[str, str] = {}
    problems = []
    for record in records:
        problem = _at(table.name, record, columns, name)
        if problem.id in places:
            raise InputError(f"{table.name}, {record.place}: same question as {places[problem.id]}")
        places[problem.id] = record.place
        problems.append(problem)
    worked = [record.place for record, one in zip(records, problems, strict=True) if is_worked_solution(record, columns, one)]
    if worked:
        warnings.warn(
            f"{table.name}, {worked[0]}: the answer is a worked solution that marks no final answer ({len(worked)} such rows): "
            "a response is right only if it says the same text; give the answer alone, or mark it, as in '#### 12' or "
            "'\\boxed{12}'",
            stacklevel=2,
        )
    return tuple(problems)


def _at(table: str, record: Record, columns: Columns, source: str) -> Problem:
    """The problem of a record; what is wrong with it is told with its place."""
    try:
        return problem_of(record.cells, columns, source)
    except InputError as error:
        raise type(error)(f"{table}, {record.place}: {error}") from None


def reasoning_gym_problems(dataset: str, n: int, *, seed: int = 0, **config: Any) -> tuple[Problem, ...]:
    """`n` distinct problems of a reasoning_gym dataset, judged by its own `score_answer`.

    Args:
        dataset: Its name there, such as "chain_sum".
        n: How many.
        seed: The dataset's seed.
        **config: The dataset's own options, such as `min_terms=3`.

    Raises:
        ImportError: reasoning_gym is not installed.
        ValueError: an unknown dataset, or one that has fewer distinct questions.

    Examples:
        >>> reasoning_gym_problems("chain_sum", 20, min_terms=3)  # doctest: +SKIP
    """
    check_count(n)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingPackage("reasoning_gym is missing: pip install 'tl_l2norm[reasoning-gym]'") from error
    if dataset not in DATASETS:
        raise InputError(unknown("reasoning_gym dataset", dataset, DATASETS))
    # Entries are made when asked for, and small settings repeat themselves: offer more than are needed.
    entries = reasoning_gym.create_dataset(dataset, size=10 * n + 100, seed=seed, **config)
    problems = tuple(itertools.islice(_gym_problems(dataset, entries), n))
    if len(problems) < n:
        raise InputError(f"{dataset} gave {len(problems)} distinct questions with these options, not {n}")
    return problems


def _gym_problems(dataset: str, entries: Iterable[dict[str, Any]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for entry in entries:
        if entry["question"] not in seen:
            seen.add(entry["question"])
            verify = functools.partial(_gym_verify, entries, entry)
            yield Problem(
                question=entry["question"],
                answer=entry["answer"],
                family=dataset,
                source="reasoning-gym",
                verify=verify,
            )


def _gym_verify(dataset: Any, entry: dict[str, Any], answer: str) -> bool:
    return bool(dataset.score_answer(answer, entry) == 1.0)
