"""How often 95% intervals miss, by the number of prompts and the skew of what is averaged: the tables of docs/intervals.md.

python -m benchmarks.coverage            measure and print, in about a minute
python -m benchmarks.coverage --write    and put them into the page
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, multinomial

from benchmarks.regions import ROOT, markdown_table, write_regions
from tl_l2norm.analysis.accuracy import wilson_interval
from tl_l2norm.core.paired_shares import paired_shares
from tl_l2norm.core.resampling import bootstrap_mean

Array = NDArray[np.float64]
Row = Mapping[str, Any]

SIZES = (8, 12, 20, 48, 100)
_SETS, _PARTS = 4000, 20
_DRAWS: dict[str, tuple[float, Callable[..., Array]]] = {
    "normal (skew 0)": (0.0, lambda rng, size: rng.normal(size=size)),
    "exponential (skew 2)": (1.0, lambda rng, size: rng.exponential(size=size)),
    "lognormal (skew 6.2)": (np.exp(0.5), lambda rng, size: rng.lognormal(size=size)),
    "5% loud (skew 3.1)": (0.05 * 10, lambda rng, size: rng.normal(size=size) + 10 * (rng.random(size) < 0.05)),
}
_SHARES = (0.5, 0.3, 0.1, 0.02)
_PAIRED = ((0.0, 0.1), (0.1, 0.1), (0.05, 0.45), (0.3, 0.3))


def of_means() -> list[Row]:
    """A mean over prompts, by the bootstrap: of values of one mode, and of differences between two that are alike."""
    rows = []
    for name, (mean, draw) in _DRAWS.items():
        for what in ("a mean", "a difference of modes that are alike"):
            row = {"values": name, "of": what}
            for n in SIZES:
                one, other = draw(np.random.default_rng([n, 1]), (2, n, _SETS))
                values, truth = (one, mean) if what == "a mean" else (one - other, 0.0)
                parts = [bootstrap_mean(part, seed=i) for i, part in enumerate(np.split(values, _PARTS, axis=1))]
                missed = np.mean([((low > truth) | (high < truth)).mean() for _, low, high in parts])
                row[f"n = {n}"] = f"{missed:.1%}"
            rows.append(row)
    return rows


def of_shares() -> list[Row]:
    """A share, exactly, over all counts: by the bootstrap of zeros and ones, by Wilson's interval, by Clopper and Pearson's."""

    def bootstrap(k: int, n: int) -> tuple[float, float]:
        _, low, high = bootstrap_mean(np.repeat([1.0, 0.0], [k, n - k]))
        return float(low), float(high)

    def exact(k: int, n: int) -> tuple[float, float]:
        ends = binomtest(k, n).proportion_ci(method="exact")
        return float(ends.low), float(ends.high)

    ways = {"bootstrap": bootstrap, "Wilson (what accuracies have)": wilson_interval, "Clopper and Pearson": exact}
    rows = []
    for p, (name, way) in product(_SHARES, ways.items()):
        row = {"share": p, "interval": name}
        for n in SIZES:
            missed = [k for k in range(n + 1) if not way(k, n)[0] - 1e-9 <= p <= way(k, n)[1] + 1e-9]
            row[f"n = {n}"] = f"{binom.pmf(missed, n, p).sum():.1%}"
        rows.append(row)
    return rows


def of_paired_shares() -> list[Row]:
    """A difference of two shares on the same problems, exactly, over all counts."""
    rows = []
    for (less, more), name in product(_PAIRED, ("bootstrap", "score (what arms have)")):
        row = {"only the one right": more, "only the other": less, "interval": name}
        for n in SIZES[:3]:
            missed = 0.0
            for a, b in product(range(n + 1), repeat=2):
                if a + b > n:
                    continue
                values = np.repeat([1.0, -1.0, 0.0], [a, b, n - a - b])
                low, high = _ends(values, name)
                if not low - 1e-9 <= more - less <= high + 1e-9:
                    missed += float(multinomial.pmf([a, b, n - a - b], n, [more, less, 1 - more - less]))
            row[f"n = {n}"] = f"{missed:.1%}"
        rows.append(row)
    return rows


def _ends(values: Array, name: str) -> tuple[float, float]:
    if name == "bootstrap":
        _, low, high = bootstrap_mean(values)
        return float(low), float(high)
    e = paired_shares(values)
    return e.low, e.high


def of_families() -> list[Row]:
    """The mean over all families of a kind, of which some are at hand with 10 prompts each; families vary as prompts do."""
    rows = []
    for count in (4, 8, 16, 48):
        rng = np.random.default_rng([count, 2])
        values = rng.normal(size=(count, 1, _SETS)) + rng.normal(size=(count, 10, _SETS))
        missed = {}
        for name, units in (("prompts", values.reshape(-1, _SETS)), ("families", values.mean(1))):
            parts = [bootstrap_mean(part, seed=i) for i, part in enumerate(np.split(units, _PARTS, axis=1))]
            missed[name] = np.mean([((low > 0) | (high < 0)).mean() for _, low, high in parts])
        own = f"{missed['families']:.1%}" if count >= 8 else "none is given"
        rows.append({"families": count, "prompts resampled": f"{missed['prompts']:.1%}", "families resampled": own})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/intervals.md")
    options = parser.parse_args()
    measured = {"means": of_means(), "shares": of_shares(), "paired shares": of_paired_shares(), "families": of_families()}
    regions = {name: markdown_table(rows) for name, rows in measured.items()}
    for name, table in regions.items():
        print(f"{name}\n\n{table}\n")
    if options.write:
        write_regions(ROOT / "docs" / "intervals.md", regions)


if __name__ == "__main__":
    main()
