"""Bad input is told in a line; a bug of ours keeps its traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tl_l2norm import cli
from tl_l2norm.core.errors import InputError, InputTypeError, MissingFile, MissingPackage, Unmeasurable, Unsupported


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


def test_an_interruption_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_report", stop)
    monkeypatch.setattr(cli, "_analyse", stop)
    monkeypatch.setattr(cli, "_evaluate", stop)
    for arguments, place in (
        (["evaluate", "--arms", "alrr", "--out", "here"], "here"),
        (["report", "--save", "mine"], "mine"),
        (["analyse", "--out", "there"], "there"),
        (["report"], ""),
    ):
        assert cli.main(arguments) == 130
        written = capsys.readouterr().err
        assert ("finished responses are kept in" in written) == bool(place) and place in written


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def doctor(options: object) -> int:
        warnings.simplefilter("default")
        warnings.warn("two weights\n  have no place", stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_doctor", doctor)
    shown = warnings.showwarning
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().err == "warning: two weights have no place\n" and warnings.showwarning is shown


@pytest.mark.parametrize("command", ["report", "demo"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--temperature", "-1"], "--temperature must be 0"),
        (["--temperature", "nan"], "--temperature must be 0"),
        (["--sink-ratio", "1"], "--sink-ratio must be over 1"),
        (["--sink-ratio", "0"], "--sink-ratio must be over 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
        (["--max-direct-tokens", "-3"], "--max-direct-tokens must be at least 1, got -3"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--examples", "-1"], "--examples must be at least 0, got -1"),
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--out", "FOLDER"], "--out is a folder"),
        (["--saes", "FOLDER/nowhere"], "no folder of SAEs at"),
        (["--saes", "FOLDER/mysaes"], "did you mean 'my-saes'?"),
        (["--save", "FOLDER/file"], "--save is a file"),
        (["--save", ""], "--save is empty: give a path"),
        (["--save", "FOLDER/file/runs"], "is a file, and nothing can be kept in it"),
        (["--out", "FOLDER/file/report.html"], "the folder of --out is a file"),
    ],
    ids=" ".join,
)
def test_what_no_model_could_be_asked_with_is_refused_before_one_is_loaded(
    command: str,
    options: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    (tmp_path / "my-saes").mkdir()
    assert cli.main([command, *(option.replace("FOLDER", str(tmp_path)) for option in options)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("layer", [12, 40, -13])
def test_a_layer_that_the_model_lacks_is_refused_before_anything_is_generated(
    layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tl_l2norm.experiments import modes

    monkeypatch.setattr(modes, "run_modes", lambda *_, **__: pytest.fail("it went on"))
    assert cli.main(["report", "--n", "1", f"--layer={layer}", "--out", str(tmp_path / "r.html")]) == 2
    assert f"layer {layer} is outside this model: it has layers 0 to 11" in capsys.readouterr().err


def test_a_terminal_without_a_character_gets_the_nearest_or_its_code() -> None:
    says = "print('──── é: 1.html → 数')"
    code = f"from tl_l2norm import cli; cli._doctor = lambda options: {says} or 0; raise SystemExit(cli.main(['doctor']))"
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout.rstrip(), done.stderr) == (0, b"---- \xe9: 1.html -> \\u6570", b"")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    said = "lambda options: print('x' * 10**6, flush=True)"
    code = f"from tl_l2norm import cli; cli._doctor = {said}; raise SystemExit(cli.main(['doctor']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_evaluate_prints_tables_and_goes_on_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = tmp_path / "arms.toml"
    arms.write_text(
        """
        [[arm]]
        name = "baseline"
        [[arm]]
        name = "ALRR"
        interventions = {kind = "ALRR", thresholds = {rule = "quantile", q = 0.9}, growth_eps = 0.0}
        """
    )
    options = ["evaluate", "--arms", str(arms), "--n", "6", "--out", str(tmp_path / "out"), "--max-new-tokens", "20"]
    assert cli.main(options) == 0
    printed = capsys.readouterr().out
    assert "paired differences" in printed and "ALRR" in printed and "power: " in printed
    tables = tmp_path / "out" / "tables"
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "not told apart: ALRR" in page or "too few problems: ALRR" in page
    written = {file.stem for file in tables.glob("*.csv")}
    assert written == {"arms", "arms_by_family", "arms_by_level", "costs", "decisions", "outcomes"}
    kept = (tmp_path / "out" / "responses.jsonl").read_bytes()
    assert cli.main(options) == 0 and capsys.readouterr().out == printed
    assert (tmp_path / "out" / "responses.jsonl").read_bytes() == kept
    assert cli.main([*options, "--seed", "1"]) == 2
    assert "holds an evaluation with other settings: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--arms", "nowhere"], "no file of arms at nowhere"),
        (["--arms", "alrr", "--calibration-share", "1"], "share is between 0 and 1"),
        (["--arms", "alrr", "--n", "1"], "too few to split"),
        (["--arms", "alrr", "--out", "FOLDER/file"], "--out is a file"),
        (["--arms", "alrr", "--problems", "FOLDER/nowhere.jsonl"], "nowhere.jsonl"),
        (["--arms", "alrr", "--engine-option", "max_num_seqs=4"], "give --engine vllm"),
        (["--arms", "alrr", "--engine", "vllm", "--engine-option", "max_num_seqs"], "is NAME=VALUE"),
        (["--arms", "alrr", "--engine", "vllm", "--device", "cpu"], "--device and --backend are of a model that runs here"),
    ],
    ids=" ".join,
)
def test_what_can_not_be_evaluated_is_refused_before_a_model_is_loaded(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    given = [option.replace("FOLDER", str(tmp_path)) for option in options]
    assert cli.main(["evaluate", "--out", str(tmp_path / "out"), *given]) == 2
    assert says in capsys.readouterr().err
