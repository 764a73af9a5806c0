"""What README and docs show runs: Python offline, page by page, as a reader would; shell commands and links are checked."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import transformers
from packaging.version import Version

import tl_l2norm as l2
from benchmarks import analysis_rows, pages, regions
from tests.engines import has_vllm
from tests.models import HAS_HOOKED
from tests.saes import HAS_SAE_LENS
from tests.slow import slow
from tl_l2norm.cli import _parser
from tl_l2norm.show.saving import has_browser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REASONER = ROOT / "assets" / "tiny_reasoner"
OURS = r"https://(?:github|raw\.githubusercontent)\.com/tl-l2norm/tl_l2norm/(?:(?:blob|tree)/)?main/(.+)"

LESS = "{'controls': (), 'quantiles': (), 'samples': 0, 'swapped_tokens': 0}"
SHIPPED = {
    'boot_transformers("Qwen/Qwen3-0.6B")': f"boot_transformers({str(REASONER)!r})",
    'HookedTransformer.from_pretrained_no_processing("Qwen/Qwen3-0.6B")': 'l2.load_model("tiny-reasoner", backend="hooked")',
    "l2.make_mixture(12)": "l2.make_mixture(4, families='compact')",
    'l2.make_mixture(8, families="compact", levels=[2, 4]': "l2.make_mixture(4, families='compact', levels=[2]",
    'l2.make_mixture(24, families="compact", levels=[2, 4]': "l2.make_mixture(10, families='compact', levels=[2]",
    "l2.make_mixture(200, ": "l2.make_mixture(20, levels=[1, 2], ",
    "l2.analyse(model, saes, problems": "l2.analyse(model, {9: saes[9], 11: saes[11]}, problems, **" + LESS,
    "n_states=2_000_000": "n_states=4_096",
    "n=8, temperature=0.8": "n=2, temperature=0.8",
    "n=4, temperature": "n=2, temperature",
}
"""What a page says, and what runs in its place: models that come with the library for those of the hub, and less of it."""

NEEDS = {
    "engine": has_vllm(),
    "circuitsvis": importlib.util.find_spec("circuitsvis") is not None,
    "figures.save(": has_browser(),
    "HookedTransformer": HAS_HOOKED,
    "train_saes(": HAS_SAE_LENS,
    ".widget()": importlib.util.find_spec("anywidget") is not None,
    "model.generate(": Version(transformers.__version__)
    < Version("5.24"),  # since then TransformerLens' own is blind to its cache
}
"""Snippets that not every version can run."""


SLOW = {"docs/analysis.md", "docs/evaluate.md", "docs/interventions.md"}


class Snippet(NamedTuple):
    line: int
    source: str


def snippets(page: Path, language: str) -> list[Snippet]:
    text = page.read_text()
    matches = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Snippet(text[: match.start(1)].count("\n"), match[1]) for match in matches]


def said_to_print(page: Path) -> list[int]:
    """Lines of the Python snippets behind which stands what they print."""
    text = page.read_text()
    return [s.line for s in snippets(page, "python") if f"```python\n{s.source}```\n\n```text\n" in text]


def words(text: str) -> str:
    return " ".join(text.split())


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def with_snippets(language: str) -> list[Path]:
    return [page for page in PAGES if snippets(page, language)]


def shown(value: Any) -> None:
    """What a notebook does with the value of an expression."""
    if value is not None:
        assert repr(value)
        getattr(value, "_repr_html_", lambda: None)()


@pytest.mark.parametrize("page", [slow(page) if named(page) in SLOW else page for page in with_snippets("python")], ids=named)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "displayhook", shown)
    Path("questions.jsonl").write_text('{"question": "mod 10: 3A-2", "answer": "1"}\n')
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, source in snippets(page, "python"):
        if not all(there for text, there in NEEDS.items() if text in source):
            continue
        for said, ran in SHIPPED.items():
            source = source.replace(said, ran)
        capsys.readouterr()
        for statement in ast.parse("\n" * line + source).body:
            exec(compile(ast.Interactive([statement]), named(page), "single", dont_inherit=True), namespace)
        if line in said_to_print(page):
            printed = words(capsys.readouterr().out)
            assert printed and printed in words(page.read_text()), "behind the snippet or, of fewer problems, before it"


def test_what_is_replaced_is_said_somewhere() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [said for said in SHIPPED if said not in text] == []
    assert set(re.findall(r'"(\w+/[\w.-]+)"', "".join(s.source for p in PAGES for s in snippets(p, "python")))) == {
        "Qwen/Qwen3-0.6B"
    }


@pytest.mark.parametrize("page", with_snippets("bash"), ids=named)
def test_shell_parses(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for snippet in snippets(page, "bash"):
        subprocess.run(["bash", "-n"], input=snippet.source, text=True, check=True)
        for line in snippet.source.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["tl-l2norm"]:
                _parser().parse_args(words[1:])  # exits where an option isn't known
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= targets
            if words[:2] == ["pip", "install"]:
                assert set(",".join(re.findall(r"(?:\.|tl_l2norm)\[(.*?)\]", line)).split(",")) - {""} <= extras


def test_the_command_line_refuses_what_it_does_not_know() -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["report", "--not-an-option"])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in [*re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if ours := re.fullmatch(OURS, link):
            assert (ROOT / ours[1]).exists(), link
        elif "://" not in link:
            assert page.name != "README.md", f"{link} leads nowhere on a package index"
            assert (page.parent / link).exists(), link


def test_readme_is_one_screen_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    assert "\nmake demo " in text and "\nmake test " in text


def intervals(page: Path) -> list[tuple[float, float]]:
    pairs = re.findall(r"\[([-+]?[\d.]+)%?, ([-+]?[\d.]+)%?\]", page.read_text())
    return [(float(low), float(high)) for low, high in pairs]


def test_figures_in_readme_are_those_in_docs() -> None:
    told = intervals(ROOT / "README.md")
    assert len(told) >= 5
    assert set(told) <= set(intervals(ROOT / "docs" / "claims.md"))


def test_written_figures_are_those_that_were_measured() -> None:
    for path, bodies in ((regions.CLAIMS, pages.kept_regions()), (regions.ARCHITECTURE, pages.rooms_region())):
        for name, body in bodies.items():
            page = path.read_text()
            assert regions.replace_region(page, name, body) == page, f"{name} in {path.name}: run `make pages`"


def test_the_map_has_all_rooms() -> None:
    drawn = re.findall(r'font-weight="600"[^>]*>(\w+)<', (ROOT / "docs" / "architecture.svg").read_text())
    assert sorted(drawn) == sorted(pages.ROOMS)


def test_a_region_is_replaced_and_nothing_else() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    assert regions.replace_region(page, "x", r"new \1") == "a\n<!-- begin x -->\nnew \\1\n<!-- end x -->\nb\n"
    with pytest.raises(ValueError, match="needs one region 'y'"):
        regions.replace_region(page, "y", "")


def test_a_table_of_markdown() -> None:
    assert regions.markdown_table([{"a": 1, "b": "x|y"}]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def cells(entries: list[dict[str, Any]]) -> list[list[Any]]:
    return [list(entry.values()) for entry in entries]


def test_rows_say_what_the_tables_say() -> None:
    features = {
        "tokens": ["read", "read", "chosen"],
        "match": "none",
        "tested": [1000, 500, 9],
        "found": [3, 4, 9],
        "replicated": 2,
        "split_found": [2.0, 3.0, 9.0],
        "split_replicated": np.nan,
    }
    split = {"between parts of thinking: found": "5", "between parts of thinking: replicated": "-"}
    assert analysis_rows.feature_rows(pd.DataFrame(features)) == [
        {"modes matched by": "none", "tested": "1,500", "found": "7", "replicated": "4", **split}
    ]
    causal = {"what": "none", "quantile": [np.nan, 0.5], "positions": 0.04, "accuracy": 0.5, "low": 0.25, "high": 1.0, "n": 8}
    assert cells(analysis_rows.causal_rows(pd.DataFrame(causal))) == [
        ["none", "-", "0.0", "50.0% [25.0, 100.0]", 8],
        ["none", "0.5", "0.0", "50.0% [25.0, 100.0]", 8],
    ]
    bound = {"layer": [3], "premise": 0.0, "premise_low": 0.0, "premise_high": 0.037, "c1": np.nan, "c2": np.nan, "r2": np.nan}
    bound |= {"slope": np.nan, "slope_low": np.nan, "slope_high": np.nan}
    bound |= {"r2_low": np.nan, "r2_high": np.nan, "n": 100}
    assert cells(analysis_rows.bound_rows(pd.DataFrame(bound))) == [[3, "0.0% [0.0, 3.7]", "-", "-", "-", "-", 100]]
    assumptions = {"assumption": "A1", "statement": "small", "layer": [0, 1], "value": [0.1, 0.3], "low": [0.05, 0.2]}
    assumptions |= {
        "high": [0.15, 0.5],
        "holds": ["holds", "does not hold"],
        "control": [0.2, np.nan],
        "control_name": "c",
        "n": 9,
    }
    assert cells(analysis_rows.assumption_rows(pd.DataFrame(assumptions))) == [
        ["A1", "small", "0.1 to 0.3", "0.3", "c: 0.2 to 0.2", "holds at 1 of 2 layers, does not hold at 1", 9]
    ]
    tokens = {"kind": ["thinking"], "among_top": 0.26, "overall": 0.25, "excess": 0.01, "low": -0.005, "high": 0.02, "n": 9}
    assert analysis_rows.high_norm_rows(pd.DataFrame(tokens))[0]["excess, points"] == "1.0 [-0.5, 2.0]"


def test_a_report_is_told_without_its_path() -> None:
    assert pages.report_region("Norms are lower.\n\nreport: /somewhere/report.html\n") == "```text\nNorms are lower.\n```"


def test_the_api_pages_name_what_is_there_and_all_that_is_public() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    names = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    rooms = [importlib.import_module(f"tl_l2norm.{room}") for room in pages.ROOMS]
    public = {
        name
        for module in (l2, *rooms)
        for name in getattr(module, "__all__", ())
        if not isinstance(getattr(module, name), ModuleType)
    }
    assert public - {name.rpartition(".")[2] for name in names} == set()
