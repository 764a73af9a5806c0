"""One self-contained HTML page that says what was run and what came of it, whichever way it fell."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from tl_l2norm.analysis.accuracy import ACCURACIES, accuracy_table
from tl_l2norm.analysis.curves import LayerCurve, layer_curve
from tl_l2norm.analysis.sinks import SINKS, sink_table
from tl_l2norm.core.arguments import as_integer, as_path, as_seed, check_text
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.resampling import MIN_PROMPTS, generator
from tl_l2norm.core.tables import WIDTH, render_table
from tl_l2norm.core.trace import Trace, require_comparable
from tl_l2norm.show.figures import accuracy_bars, curves_frame, norm_curves, token_heatmap
from tl_l2norm.show.page import asset, render, write_page
from tl_l2norm.show.report_parts import figure_html, figure_scripts, table_html
from tl_l2norm.show.report_words import also, by_mode, caveats, left_out, missing, share, verdict, warnings_of
from tl_l2norm.show.style import MODE_NAMES
from tl_l2norm.show.tokens import norm_text, visible_text
from tl_l2norm.show.widgets import TokensWidget, tokens
from tl_l2norm.tasks.results import Result, results_of

_MAX_TOKENS = 600  # of an example; a page with tens of thousands of drawn tokens is slow
_MAX_SINKS = 15


def report(
    results: Result | Sequence[Result],
    *,
    path: str | Path,
    layer: int | None = None,
    examples: int = 3,
    seed: int = 0,
    title: str = "The norm of the residual stream",
) -> Path:
    """Write one HTML file about results in one or both modes; it fetches nothing and can be mailed.

    Args:
        results: of one model, from `run_modes`.
        path: where to write; its folder is made, an older file is replaced in one step.
        layer: whose norms colour the tokens; default the last recorded.
        examples: how many prompts to show token by token.
        seed: of the resampling and of the choice of examples.
        title: heading of the page.

    Raises:
        ValueError: no results, norms that are not comparable, a layer that was not recorded, or a negative `examples`.

    Examples:
        >>> l2.report(results, path="report.html").name
        'report.html'
    """
    path, examples = as_path("path", path), as_integer("examples", examples, least=0)
    check_text("title", title)
    results, seed = results_of(results), as_seed(seed)
    traces = _traces(results)
    coloured = traces[0].layers[traces[0].index_of(-1 if layer is None else layer)]
    shown = _examples(results, examples, seed)
    page = render(
        "show/report.html.jinja",
        title=title,
        styles=[Markup(asset("show/report.css")), *TokensWidget.styles()],
        scripts=[*figure_scripts(), *TokensWidget.scripts()],
        facts=_facts(results, seed),
        **_words_part(results, traces, seed),
        **_accuracy_part(results),
        **_curves_part(traces, seed),
        **_sinks_part(traces),
        **_heatmap_part(shown[0][0] if shown else results[0]),
        examples=[(pair[0].problem.question, _widget(pair, coloured).fragment()) for pair in shown],
    )
    return write_page(path, page)


def _words_part(results: Sequence[Result], traces: Sequence[Trace], seed: int) -> dict[str, object]:
    """The verdict, what stands above it and what weakens it."""
    accuracy = _accuracy(results)
    return {
        "verdict": verdict(traces, seed).partition(": "),
        "warnings": warnings_of(traces, accuracy),
        "caveats": [*also(traces, seed), *left_out(traces), *caveats(accuracy), *missing(traces, results)],
        "late": layer_ranges(traces[0].late_layers),
        "min_prompts": MIN_PROMPTS,
    }


def _accuracy_part(results: Sequence[Result]) -> dict[str, object]:
    """Accuracy by mode; by family and level too where there are several."""
    accuracy = _accuracy(results)
    groups = [by for by in ("family", "level") if len({getattr(r.problem, by) for r in results}) > 1]
    detailed = {by: _accuracy(results, by) for by in groups}
    if len(groups) > 1:
        detailed["family and level"] = _accuracy(results, *groups)
    return {
        "accuracy": table_html(accuracy_text(accuracy)),
        "accuracy_figure": figure_html(accuracy_bars(detailed[groups[0]] if groups else accuracy), "accuracy"),
        "detailed": {by: table_html(accuracy_text(table)) for by, table in detailed.items()},
        "known": bool(accuracy["n"].sum()),
    }


def _curves_part(traces: Sequence[Trace], seed: int) -> dict[str, object]:
    """Norms by layer, and the activation of SAE features where all traces have it; None for what there is not."""
    curves = _curves(traces, "l2_norm", seed)
    features = _curves(traces, "feature_sum", seed) if all(trace.features for trace in traces) else []
    return {
        "curves": table_html(curves_frame(curves)) if curves else None,
        "curves_figure": figure_html(norm_curves(curves), "curves") if curves else None,
        "features": table_html(curves_frame(features)) if features else None,
        "features_figure": figure_html(norm_curves(features), "features") if features else None,
        "sae": next(iter(traces[0].features.values())).sae if features else None,
    }


def _sinks_part(traces: Sequence[Trace]) -> dict[str, object]:
    """The positions that are attention sinks, the most frequent first."""
    sinks = sink_table(traces)
    return {
        "sinks": table_html(sinks_text(sinks.head(_MAX_SINKS))),
        "more_sinks": max(0, len(sinks) - _MAX_SINKS),
        "sink_ratio": f"{traces[0].provenance.sink_ratio:g}",
    }


def _heatmap_part(example: Result) -> dict[str, object]:
    """Every layer and token of one response."""
    return {
        "heatmap": figure_html(token_heatmap(example.trace, max_tokens=_MAX_TOKENS), "heatmap"),
        "heatmap_question": example.problem.question,
        "heatmap_title": _example_title(example),
        "heatmap_table": table_html(_norms_text(example.trace)),
    }


def summary(results: Result | Sequence[Result], *, seed: int = 0) -> str:
    """Accuracy by mode and the verdict on the late layers, as text of 100 columns.

    Examples:
        >>> print(summary(results))
        mode       accuracy   95% interval    n   not direct   cut off
        ...
        Thinking norms are lower than direct ones in the late layers (layers 9 to 11): ...
    """
    results, seed = results_of(results), as_seed(seed)
    traces = _traces(results)
    accuracy = _accuracy(results)
    words = [verdict(traces, seed), *also(traces, seed), *left_out(traces), *caveats(accuracy), *missing(traces, results)]
    above, below = ([textwrap.fill(text, WIDTH) for text in texts] for texts in (warnings_of(traces, accuracy), words))
    return "\n\n".join([*above, render_table(accuracy_text(accuracy)), *below])


def accuracy_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `accuracy_table` returns, for people."""
    ACCURACIES.check(table, "mode", *ACCURACIES.names)
    columns = {name: table[name] for name in ("family", "level") if name in table}
    return pd.DataFrame(
        {
            **columns,
            "mode": [MODE_NAMES[mode] for mode in table["mode"]],
            "accuracy": [share(value, "not known") for value in table["accuracy"]],
            "95% interval": [
                f"{share(low)} to {share(high)}" if n else "-"
                for low, high, n in zip(table["low"], table["high"], table["n"], strict=True)
            ],
            "n": table["n"],
            "not direct": [share(value) for value in table["not_direct"]],
            "cut off": [share(value) for value in table["cut_off"]],
        }
    )


def sinks_text(table: pd.DataFrame) -> pd.DataFrame:
    """What `sink_table` returns, for people."""
    SINKS.check(table)
    return pd.DataFrame(
        {
            "position": table["position"],
            "token": [visible_text(token) or "(part of a character)" for token in table["token"]],
            "over the bound at layers": [layer_ranges(layers) or "none" for layers in table["layers"]],
            "greatest norm": [norm_text(norm) for norm in table["max_norm"]],
            "sequences": [f"{k} of {n}" for k, n in zip(table["sequences"], table["n"], strict=True)],
        }
    )


def _traces(results: Sequence[Result]) -> list[Trace]:
    if not results:
        raise InputError("no results to report")
    _require_distinct(results)
    traces = [_labelled(result) for result in results]
    require_comparable(traces)
    return traces


def _require_distinct(results: Sequence[Result]) -> None:
    """Refuse a response that is given twice."""
    seen = set()
    for result in results:
        if (key := _identity(result)) in seen:
            raise InputError(
                f"the {MODE_NAMES[result.mode]} response to {result.problem.question!r:.60} is given twice: each counts once"
            )
        seen.add(key)


def _identity(result: Result) -> tuple[object, ...]:
    """What a response is the same by: several samples of a problem have seeds of their own, greedy ones are all the same."""
    source = result.trace.provenance
    sampled = source.seed if source.temperature else result.response
    drawn = id(result.trace) if source.temperature is None else sampled
    return result.problem.id, result.mode, source.interventions, drawn


def _labelled(result: Result) -> Trace:
    return result.trace.with_labels(mode=result.mode, prompt=result.problem.id)


def _accuracy(results: Sequence[Result], *by: str) -> pd.DataFrame:
    """Grouped by these and mode, thinking first."""
    table = accuracy_table(results, by=(*by, "mode"))
    order = table["mode"].map([*MODE_NAMES].index)
    return table.assign(order=order).sort_values([*by, "order"], ignore_index=True).drop(columns="order")


def _curves(traces: Sequence[Trace], quantity: str, seed: int) -> list[LayerCurve]:
    """Of each mode that has response tokens."""
    return [
        layer_curve(members, mode=mode, quantity=quantity, seed=seed)
        for mode, members in by_mode(traces).items()
        if any(trace.is_response.any() for trace in members)
    ]


def _facts(results: Sequence[Result], seed: int) -> dict[str, str]:
    """What was run, as label and text."""
    sources = [result.trace.provenance for result in results]
    first, modes = sources[0], [result.mode for result in results]
    sampled = sorted({source.temperature for source in sources if source.temperature})
    return {
        "Model": first.model,
        "Backend": ", ".join(sorted({source.backend for source in sources})),
        "Data type": first.dtype,
        "Weights": "centred" if first.centred else "as loaded",
        "Prompts": str(len({result.problem.id for result in results})),
        "Families": ", ".join(sorted({result.problem.family for result in results})),
        "Levels": ", ".join(map(str, sorted({result.problem.level for result in results}))),
        "Responses": ", ".join(f"{modes.count(mode)} {name}" for mode, name in MODE_NAMES.items() if mode in modes),
        **{f"{name} by".capitalize(): _controls(results, mode) for mode, name in MODE_NAMES.items() if mode in modes},
        "Layers recorded": layer_ranges(results[0].trace.layers),
        "Decoding": f"sampled at temperature {', '.join(f'{value:g}' for value in sampled)}" if sampled else "greedy",
        "Seed of the intervals": str(seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(first.versions.items())),
        "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _controls(results: Sequence[Result], mode: str) -> str:
    """What put the model into a mode."""
    return ", ".join(sorted({result.control.replace("=", " = ") for result in results if result.mode == mode}))


def _examples(results: Sequence[Result], n: int, seed: int) -> list[list[Result]]:
    """Responses to some prompts, one per mode; prompts that were asked in every mode come first."""
    by_prompt: dict[str, dict[str, Result]] = {}
    for result in results:
        by_prompt.setdefault(result.problem.id, {}).setdefault(result.mode, result)
    groups = [[modes[mode] for mode in MODE_NAMES if mode in modes] for modes in by_prompt.values()]
    most = max(map(len, groups))
    full = [group for group in groups if len(group) == most]
    chosen = generator(seed).choice(len(full), size=min(n, len(full)), replace=False)
    return [full[i] for i in sorted(chosen.tolist())]


def _widget(pair: Sequence[Result], layer: int) -> TokensWidget:
    return tokens([result.trace for result in pair], layer=layer, max_tokens=_MAX_TOKENS, titles=[*map(_example_title, pair)])


def _example_title(result: Result) -> str:
    judged = {True: "right", False: "wrong", None: "answer not known"}[result.correct]
    notes = [judged if result.problem.answer is None or result.correct else f"{judged}, expected {result.problem.answer}"]
    notes += ["not a direct answer"] * (result.direct is False) + ["cut off"] * (result.finish_reason == "length")
    return f"{MODE_NAMES[result.mode]}: {', '.join(notes)}"


def _norms_text(trace: Trace) -> pd.DataFrame:
    """Tokens down, layers across; a sink in brackets."""
    norms, sinks = trace.l2_norms[:, :_MAX_TOKENS].tolist(), trace.is_sink[:, :_MAX_TOKENS].tolist()
    texts = [visible_text(text) for text in trace.str_tokens[:_MAX_TOKENS]]
    columns: dict[str, Any] = {"position": range(len(texts)), "token": texts}
    for layer, of_layer, marks in zip(trace.layers, norms, sinks, strict=True):
        values = zip(of_layer, marks, strict=True)
        columns[str(layer)] = [f"({norm:,.0f})" if sink else norm_text(norm) for norm, sink in values]
    return pd.DataFrame(columns)
