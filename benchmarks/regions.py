"""Parts of the pages that commands write, between marks; the words around them are written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLAIMS, ANALYSIS, BENCHMARKS, ARCHITECTURE = (
    ROOT / "docs" / f"{name}.md" for name in ("claims", "analysis", "benchmarks", "architecture")
)


def replace_region(page: str, name: str, body: str) -> str:
    """The page with what stands between `<!-- begin name -->` and `<!-- end name -->` replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page needs one region {name!r}: {begin} ... {end}")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{body.strip()}\n{end}", page, flags=re.DOTALL)


def write_regions(path: Path, regions: Mapping[str, str]) -> None:
    """Replace regions of a page by name."""
    page = path.read_text()
    for name, body in regions.items():
        page = replace_region(page, name, body)
    path.write_text(page)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[name]).replace("|", "\\|") for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
