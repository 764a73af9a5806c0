"""Problems from elsewhere: a file, or the package reasoning-gym."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tl_l2norm.errors import InputError, MissingFile, MissingPackage
from tl_l2norm.tasks import Problem, check_count, unknown


def load_problems(path: str | Path) -> tuple[Problem, ...]:
    """Problems from a JSONL file.

    Each line is an object with `question` and, if you like, `answer` (text, number or true/false), `family` (text) and
    `level` (a whole number from 1 on). Other keys are ignored, blank lines skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no problems at {path}: a JSONL file is expected, one object with a question per line")
    lines: dict[str, int] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            problem = _parse_line(line, source=path.name)
            if problem.id in lines:
                raise InputError(f"same question as line {lines[problem.id]}")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        lines[problem.id] = number
        problems.append(problem)
    if not problems:
        raise InputError(f"{path} holds no problems")
    return tuple(problems)


def _parse_line(line: str, source: str) -> Problem:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise InputError(f"expected an object, got {json.dumps(record)[:60]}")
    question, answer = record.get("question"), record.get("answer")
    family, level = record.get("family", "custom"), record.get("level", 1)
    if question is None:
        raise InputError("no question")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"question must be text that is not empty, got {question!r}")
    if not isinstance(answer, str | int | float | None) or answer == "":
        raise InputError(f"answer must be text, a number or left out, got {answer!r}")
    if not isinstance(family, str) or not family:
        raise InputError(f"family must be text, got {family!r}")
    if not isinstance(level, int) or isinstance(level, bool) or level < 1:
        raise InputError(f"level must be a whole number from 1 on, got {level!r}")
    answer = answer if isinstance(answer, str | None) else json.dumps(answer)  # True is "true"
    return Problem(question=question, answer=answer, family=family, level=level, source=source)


def reasoning_gym_problems(dataset: str, n: int, *, seed: int = 0, **config: Any) -> tuple[Problem, ...]:
    """`n` distinct problems of a reasoning_gym dataset, judged by its own `score_answer`.

    Args:
        dataset: Its name there, such as "chain_sum".
        n: How many.
        seed: The dataset's seed.
        **config: The dataset's own options, such as `min_terms=3`.
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
