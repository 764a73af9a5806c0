"""Tables at the door: what no analysis makes is refused by name, and pandas' nullable columns are read like numpy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.paper_tables import TABLES, analysis_of, filled
from tests.unit.paper.test_claims import NORM, arms, bound, effect_on_correctness, links, sets, swapped, trend
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.paper.claims import claims_table
from tl_l2norm.paper.figures import draw_analysis
from tl_l2norm.paper.tables import frames_of

JUDGED: dict[str, pd.DataFrame] = {
    "correctness": effect_on_correctness(),
    **NORM,
    **links((0.2, 0.002, 0.004), (0.0, 0.9, 0.9)),
    **arms(-0.2, -0.25, -0.05),
    **swapped((2, 0.2, 0.002, 0.004)),
    "trend": trend(),
    "bound": bound(),
    "bound_given_tokens": bound(r2_low=0.4, spread=5.0),
    "bound_control": sets(),
}
JUDGED = {name: filled(name, frame) for name, frame in JUDGED.items()}


def from_csv(frame: pd.DataFrame, tmp_path: Any, **options: Any) -> pd.DataFrame:
    frame.to_csv(tmp_path / "table.csv", index=False)
    return pd.read_csv(tmp_path / "table.csv", **options)


NULLABLE = {"i": "Int64", "f": "Float64", "b": "boolean"}


@pytest.mark.parametrize("way", ["nullable", "pd.NA", "pyarrow"])
def test_nullable_columns_give_the_same_claims_and_figures(way: str, tmp_path: Any) -> None:
    change: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
        "nullable": lambda frame: frame.astype({c: NULLABLE[d.kind] for c, d in frame.dtypes.items() if d.kind in NULLABLE}),
        "pd.NA": lambda frame: frame.astype(object).where(frame.notna(), pd.NA),
        "pyarrow": lambda frame: from_csv(frame, tmp_path, dtype_backend="pyarrow"),
    }
    before = from_csv if way == "pyarrow" else lambda frame, _: frame
    changed = {name: change[way](frame) for name, frame in (JUDGED | TABLES).items()}
    plain = {name: before(frame, tmp_path) for name, frame in (JUDGED | TABLES).items()}
    assert (changed["trend"].dtypes != plain["trend"].dtypes).any()
    pd.testing.assert_frame_equal(claims_table(changed, {}), claims_table(plain, {}))
    figures, expected = draw_analysis(analysis_of(changed)), draw_analysis(analysis_of(plain))
    assert {n: f.to_json() for n, f in figures.items()} == {n: f.to_json() for n, f in expected.items()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trend", {"p": -1.0}, "the table of trend: p is -1, a probability is from 0 to 1"),
        ("correctness", {"p_families": 7.0}, "the table of correctness: p_families is 7, a probability"),
        ("pull_links", {"p": np.nan}, "the table of pull_links: p is missing beside rho 0.2; give what pull_link returns"),
        ("mode_effects", {"p": [0.001, np.nan]}, "the table of mode_effects: p is missing beside effect 2;"),
        ("shapes", {"p_layers": np.nan}, "the table of shapes: p_layers is missing beside error 0.2"),
        ("causal_differences", {"p_margin": np.nan}, "the table of causal_differences: p_margin is missing beside difference"),
    ],
)
def test_p_values_that_no_test_gives_are_refused_by_name(name: str, change: dict[str, Any], message: str) -> None:
    """Any of them let a claim through before, or turned Holm's correction of the others."""
    with pytest.raises(InputError, match=message):
        claims_table({**JUDGED, name: JUDGED[name].assign(**change)}, {})


@pytest.mark.parametrize("name", sorted(set(JUDGED) - {"bound_control"}))
def test_an_entry_twice_is_refused_by_name_whatever_else_differs(name: str) -> None:
    table = JUDGED[name]
    twice = pd.concat([table, table.tail(1).assign(n=99)])
    with pytest.raises(InputError, match=rf"the table of {name} holds entries twice \(\w+ .*\): give those of one analysis"):
        claims_table({**JUDGED, name: twice}, {})


def test_a_figures_table_with_an_entry_twice_is_refused() -> None:
    curves = TABLES["curves"]
    with pytest.raises(InputError, match=r"the table of curves holds entries twice \(source trained SAE, .* layer 0\)"):
        draw_analysis(analysis_of({"curves": pd.concat([curves, curves.head(1).assign(mean=0.0)])}))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (None, "tables are DataFrames by name.*got None"),
        ([JUDGED["trend"]], "tables are DataFrames by name"),
        ({"causal": {}}, "the table of causal is a DataFrame.*got {}"),
    ],
)
def test_what_holds_no_tables_is_refused_at_once(tables: Any, message: str) -> None:
    with pytest.raises(InputTypeError, match=message):
        frames_of(tables)
    for take in (lambda: claims_table(tables, {}), lambda: analysis_of(tables)):
        with pytest.raises(TypeError):  # ours, or under pytest the checker's of annotations
            take()


def test_columns_of_the_users_own_are_no_obstacle() -> None:
    own = {name: frame.assign(mine=[[1]] * len(frame)) for name, frame in JUDGED.items()}
    pd.testing.assert_frame_equal(claims_table(own, {}), claims_table(JUDGED, {}))
