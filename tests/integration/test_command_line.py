"""The command line as a user meets it: another process, real models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models
from tl_l2norm import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tl_l2norm", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_report_on_ones_own_prompts_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.jsonl"
    questions = [{"question": f"What is {a} + {a}?", "answer": a + a, "family": "mine"} for a in range(2, 10)]
    prompts.write_text("\n".join(json.dumps(q) for q in questions))
    out = tmp_path / "deep" / "r.html"
    options = ["report", "--prompts", str(prompts), "--out", str(out), "--saes", "none"]
    options += ["--max-new-tokens", "12", "--max-direct-tokens", "4", "--save", str(tmp_path / "kept")]
    first = run(*options)
    assert first.returncode == 0, first.stderr
    page = out.read_text()
    assert "What is 9 + 9?" in page and "n = 8 prompts" in page
    assert "late layers (layers 9 to 11, " in " ".join(first.stdout.split()) and str(out) in first.stdout
    kept = sorted((tmp_path / "kept").iterdir())
    assert [p.name.split("-")[0] for p in kept] == ["direct", "think"]
    stamps = [(p / "traces.json").stat().st_mtime_ns for p in kept]
    out.unlink()
    again = run(*options)
    assert again.returncode == 0, again.stderr
    assert out.exists() and "generate" not in again.stderr
    assert [(p / "traces.json").stat().st_mtime_ns for p in kept] == stamps, "nothing was run again"
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_the_default_is_the_tiny_reasoner_with_its_saes(tmp_path: Path) -> None:
    options = ["report", "--n", "20", "--out", str(tmp_path / "r.html"), "--save", str(tmp_path / "kept")]
    first = run(*options)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "r.html").read_text()
    assert "tiny-reasoner" in page and "n = 20 prompts" in page
    assert "Norm and SAE features by layer" in page and "SAELens" not in first.stderr
    assert "at the tokens from which the response was chosen" in first.stdout.replace("\n", " ")
    without = run("demo", *options[1:], "--saes", "none")
    assert without.returncode == 0 and "generate" not in without.stderr and "Norm by layer" in (tmp_path / "r.html").read_text()


def test_bad_input_is_one_line_and_no_traceback() -> None:
    done = run("report", "--model", "no-such-model")
    assert done.returncode == 2
    assert "error: can't load 'no-such-model'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["doctor", "--model", "./nowhere"], "no model at ./nowhere"),
    ],
)
def test_bad_input_is_told(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    written = capsys.readouterr().err
    assert says in written and "error: " in written


def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "What is 1 + 1?"}\n\n{"question": \n')
    assert cli.main(["report", "--prompts", str(file)]) == 2
    assert "error: " in (written := capsys.readouterr().err) and "p.jsonl, line 3: not JSON" in written


@pytest.mark.slow
@pytest.mark.parametrize("case", models.SMOLLM2, ids=str)
def test_doctor(case: models.Case) -> None:
    done = run("doctor", "--model", models.folder(case.architecture), "--backend", case.backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\bpass  ", done.stdout)) == 10 and "FAIL" not in done.stdout
    assert "transformer-lens" in done.stdout


def test_doctor_in_bfloat16() -> None:
    done = run("doctor", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_and_version() -> None:
    assert "report" in run("--help").stdout
    assert run("--version").stdout.startswith("tl-l2norm 0.")


@pytest.mark.slow
def test_analyse_writes_a_folder_and_goes_on_from_it(tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    options = ["analyse", "--n", "16", "--saes", "none", "--skip", "suppression", "--max-new-tokens", "96", "--out", str(out)]
    first = run(*options)
    assert first.returncode == 0, first.stderr
    assert "that could be tested are supported on this model" in first.stdout and str(out / "analysis.html") in first.stdout
    assert "no SAEs were given" in " ".join(first.stdout.split())
    assert "tiny-reasoner" in (out / "analysis.html").read_text()
    assert {"accuracy", "curves", "differences", "dynamics"} <= {path.stem for path in (out / "tables").glob("*.csv")}
    again = run(*options)
    assert again.returncode == 0 and again.stdout == first.stdout and "collect" not in again.stderr
    few = run("analyse", "--n", "7", "--saes", "none", "--out", str(tmp_path / "few"))
    assert few.returncode == 2 and "7 problems: at least 8 are needed" in few.stderr
