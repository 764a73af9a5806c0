"""Bad input is told in a line; a bug of ours keeps its traceback."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tl_l2norm import cli
from tl_l2norm.errors import InputError, InputTypeError, MissingFile, MissingPackage, Unmeasurable, Unsupported


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What `doctor` raises: put it in here."""
    errors: list[BaseException] = []

    def doctor(options: object) -> int:
        raise errors[0]

    monkeypatch.setattr(cli, "_doctor", doctor)
    return errors


@pytest.mark.parametrize(
    "error",
    [
        *(kind("told") for kind in (InputError, InputTypeError, MissingFile, MissingPackage, Unsupported, Unmeasurable)),
        FloatingPointError("told"),
        FileNotFoundError(errno.ENOENT, "told", "model.safetensors"),
        PermissionError(errno.EACCES, "told", "/report.html"),
        OSError(errno.ENOSPC, "told"),
        ConnectionError("told"),
    ],
    ids=repr,
)
def test_bad_input_is_one_line(error: Exception, failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(error)
    assert cli.main(["doctor"]) == 2
    written = capsys.readouterr().err
    assert written.startswith("tl-l2norm doctor: error: ") and "told" in written and written.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [kind("a bug") for kind in (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError, OSError)],
    ids=repr,
)
def test_a_bug_keeps_its_traceback(error: Exception, failing: list[BaseException]) -> None:
    failing.append(error)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["doctor"])


def test_an_interruption_has_an_exit_code_of_its_own(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    said = "lambda options: print('x' * 10**6, flush=True)"
    code = f"from tl_l2norm import cli; cli._doctor = {said}; raise SystemExit(cli.main(['doctor']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()
