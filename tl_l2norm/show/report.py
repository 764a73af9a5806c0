"""One self-contained HTML page that says what was run and what came of it, whichever way it fell."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tl_l2norm.analysis.responses import highest_norm_tokens
from tl_l2norm.analysis.sinks import sink_table
from tl_l2norm.core.arguments import as_integer, as_seed, check_text
from tl_l2norm.core.errors import Unmeasurable
from tl_l2norm.core.layers import layer_ranges
from tl_l2norm.core.resampling import MIN_PROMPTS, generator
from tl_l2norm.core.tables import WIDTH, render_table
from tl_l2norm.core.trace import Trace
from tl_l2norm.show.page import page_path, render, write_page
from tl_l2norm.show.report_parts import csv_html, figure_html, figure_scripts, page_styles, table_html
from tl_l2norm.show.report_text import (
    accuracy_text,
    curves_text,
    example_title,
    facts_of,
    norms_text,
    places_text,
    sinks_text,
    types_text,
)
from tl_l2norm.show.report_words import also, caveats, left_out, missing, verdict, warnings_of
from tl_l2norm.show.result_figures import MAX_TOKENS, Picture, accuracy_by, groups_of, pictures, traces_to_show
from tl_l2norm.show.style import MODE_NAMES
from tl_l2norm.show.widgets import TokensWidget, tokens
from tl_l2norm.tasks.results import Result, results_of

_MAX_SINKS = 15
_SHOWN_TYPES, _MAX_TYPES = 12, 200  # of tokens with the highest norms: on the page, and in the file
_HEADINGS = {
    "run": "What was run",
    "accuracy": "Accuracy",
    "curves": "Norm by layer",
    "metrics": "Metrics by layer",
    "late": "Late norm against length, position and correctness",
    "tokens": "Highest-norm tokens",
    "sinks": "Attention sinks",
    "sequence": "One sequence, layer by layer",
    "examples": "Token by token",
    "reading": "How to read this",
}
"""Of sections, by their anchors, in their order."""
_ALWAYS = ("run", "accuracy", "curves", "sinks", "sequence", "reading")


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
    path, examples = page_path(path), as_integer("examples", examples, least=0)
    check_text("title", title)
    results, seed = results_of(results), as_seed(seed)
    traces = traces_to_show(results)
    coloured = traces[0].layers[traces[0].index_of(-1 if layer is None else layer)]
    shown = _examples(results, examples, seed)
    example = shown[0][0] if shown else results[0]
    drawn = pictures(results, traces, example, seed)
    types, metrics = _types_part(results, coloured), [name for name in traces[0].metrics if name in drawn]
    page = render(
        "show/report.html.jinja",
        title=title,
        styles=[*page_styles(), *TokensWidget.styles()],
        scripts=[*figure_scripts(), *TokensWidget.scripts()],
        contents=_contents(drawn, metrics=metrics, types=types, examples=shown),
        facts=facts_of(results, seed),
        figures={name: figure_html(own.figure, name, data=own.data, prefix=_model(traces)) for name, own in drawn.items()},
        metrics=metrics,
        **_words_part(results, traces, seed),
        **_accuracy_part(results),
        **_tables_part(drawn),
        **_sinks_part(traces),
        **_heatmap_part(example),
        types=types,
        layer=coloured,
        sae=next(iter(traces[0].features.values())).sae if "features" in drawn else None,
        examples=[(pair[0].problem.question, _widget(pair, coloured).fragment()) for pair in shown],
    )
    return write_page(path, page)


def _contents(drawn: Collection[str], *, metrics: object, types: object, examples: object) -> dict[str, str]:
    """Headings of the sections there are, by anchor."""
    there = {*_ALWAYS, *drawn} | ({"late"} if "length" in drawn else set()) | ({"metrics"} if metrics else set())
    there |= {name for name, held in (("tokens", types), ("examples", examples)) if held}
    headings = {name: heading for name, heading in _HEADINGS.items() if name in there}
    return headings | ({"curves": "Norm and SAE features by layer"} if "features" in drawn else {})


def _words_part(results: Sequence[Result], traces: Sequence[Trace], seed: int) -> dict[str, object]:
    """The verdict, what stands above it and what weakens it."""
    accuracy = accuracy_by(results)
    return {
        "verdict": verdict(traces, seed).partition(": "),
        "warnings": warnings_of(traces, accuracy),
        "caveats": [*also(traces, seed), *left_out(traces), *caveats(accuracy), *missing(traces, results)],
        "late": layer_ranges(traces[0].late_layers),
        "min_prompts": MIN_PROMPTS,
    }


def _accuracy_part(results: Sequence[Result]) -> dict[str, object]:
    """Accuracy by mode; by family and level too where there are several."""
    groups = groups_of(results)
    detailed = {by: accuracy_by(results, by) for by in groups}
    if len(groups) > 1:
        detailed["family and level"] = accuracy_by(results, *groups)
    return {
        "accuracy": table_html(accuracy_text(accuracy_by(results))),
        "detailed": {by: table_html(accuracy_text(table)) for by, table in detailed.items()},
    }


def _tables_part(drawn: Mapping[str, Picture]) -> dict[str, object]:
    """Beside each figure its numbers, as text."""
    makers = {"position": places_text, "correctness": places_text}
    shown = [name for name in drawn if name not in ("accuracy", "length", "heatmap")]
    return {"tables": {name: table_html(makers.get(name, curves_text)(drawn[name].data)) for name in shown}}


def _types_part(results: Sequence[Result], layer: int) -> dict[str, object] | None:
    """Which tokens have the highest norms; None where no response has a token."""
    try:
        types = highest_norm_tokens(results, layer=layer, n=_MAX_TYPES)
    except Unmeasurable:
        return None
    return {
        "table": table_html(types_text(types.head(_SHOWN_TYPES))),
        "csv": csv_html(types, results[0].trace.provenance.model, "highest-norm-tokens"),
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
        "heatmap_question": example.problem.question,
        "heatmap_title": example_title(example),
        "heatmap_table": table_html(norms_text(example.trace)),
    }


def _model(traces: Sequence[Trace]) -> str:
    return traces[0].provenance.model


def summary(results: Result | Sequence[Result], *, seed: int = 0) -> str:
    """Accuracy by mode and the verdict on the late layers, as text of 100 columns.

    Examples:
        >>> print(summary(results))
        mode       accuracy   95% interval    n   not direct   cut off
        ...
        Thinking norms are lower than direct ones in the late layers (layers 9 to 11, as many tokens of each
        response): ...
    """
    results, seed = results_of(results), as_seed(seed)
    traces = traces_to_show(results)
    accuracy = accuracy_by(results)
    words = [verdict(traces, seed), *also(traces, seed), *left_out(traces), *caveats(accuracy), *missing(traces, results)]
    above, below = ([textwrap.fill(text, WIDTH) for text in texts] for texts in (warnings_of(traces, accuracy), words))
    return "\n\n".join([*above, render_table(accuracy_text(accuracy)), *below])


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
    return tokens([result.trace for result in pair], layer=layer, max_tokens=MAX_TOKENS, titles=[*map(example_title, pair)])
