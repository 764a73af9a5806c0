"""Benchmarks of several parts, each a command of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path


def run_part(described: str | None, parts: Mapping[str, Callable[[Path], None]]) -> None:
    """Run the part that the command names, in its folder."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts[options.part](options.out)
