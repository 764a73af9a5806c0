"""Every table of analysis has its schema, and what its maker's docstring says of columns is what the schema says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest

import tl_l2norm.analysis
from tests.planted import both_modes, response
from tl_l2norm.analysis.reasoning import REPLICATIONS, TESTED, ReasoningFeatures
from tl_l2norm.core import measured
from tl_l2norm.core.schema import Schema
from tl_l2norm.experiments import curve, evaluation_results, selection, suppression
from tl_l2norm.paper import claims, stages, tables
from tl_l2norm.recording import importance, pressure
from tl_l2norm.saes import evaluate

MODULES = [importlib.import_module(f"tl_l2norm.analysis.{m.name}") for m in pkgutil.iter_modules(tl_l2norm.analysis.__path__)]
OWNERS = [*MODULES, pressure, importance, evaluate, suppression, selection, stages]
SCHEMAS = {
    schema.maker: schema
    for module in (*MODULES, measured, selection, claims)
    for schema in vars(module).values()
    if isinstance(schema, Schema)
}
ELSEWHERE = {
    "attribute(...).table": ("attribution", "Attribution"),
    "compare_late(...).table": ("late", "LateComparison"),
    "layer_curve(...).to_frame()": ("curves", "LayerCurve"),
    "find_reasoning_features(...).table": ("reasoning", "ReasoningFeatures"),
}
"""Makers whose columns are described by the value that holds the table."""


def description(maker: str) -> str:
    """Where a maker's columns are described: its docstring, or the source of the value that holds the table."""
    if maker in ELSEWHERE:
        module, name = ELSEWHERE[maker]
        return inspect.getsource(getattr(importlib.import_module(f"tl_l2norm.analysis.{module}"), name))
    if maker.startswith("selection_curve"):
        return inspect.getsource(curve.SelectionCurve)
    if maker.startswith("score_table"):
        return inspect.getsource(selection.ScoreTable)
    if maker.startswith("evaluate("):
        return inspect.getsource(evaluation_results.Results)
    name = maker.partition("(")[0]
    owner = next(vars(module)[name.partition(".")[0]] for module in OWNERS if name.partition(".")[0] in vars(module))
    return inspect.getdoc(getattr(owner, name.partition(".")[2]) if "." in name else owner) or ""


@pytest.mark.parametrize("maker", SCHEMAS)
def test_docstrings_name_the_columns_of_the_schema(maker: str) -> None:
    text = description(maker)
    words = set(re.findall(r"\w+", text))
    if {"_low", "_high"} <= words:  # "each with _low and _high"
        words |= {f"{word}{end}" for word in words for end in ("_low", "_high")}
    assert [name for name in SCHEMAS[maker].names if name not in words and f'"{name}"' not in text] == []


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), *tables.SCHEMAS.values()], ids=lambda schema: schema.name)
def test_a_column_is_said_once_and_in_words(schema: Schema) -> None:
    names = [column.name for column in schema.columns]
    assert len(names) == len(set(names)) and all(column.meaning for column in schema.columns)


def test_where_no_latent_was_chosen_the_table_has_its_columns_all_the_same() -> None:
    think, direct = both_modes(8, lambda i, mode: response(np.ones((4, 2)), prompt=str(i), mode=mode))
    nothing = ReasoningFeatures(
        latents={3: ()},
        table=TESTED.frame([]),
        chosen_on=frozenset(),
        saes={},
        match="none",
        tokens="read",
        seed=0,
        model="by hand",
    )
    again = nothing.evaluate(think, direct)
    assert again.empty and tuple(again) == REPLICATIONS.names and again["replicated"].dtype == bool
