"""A widget to look around in: tokens of one or several sequences, coloured by whatever was recorded, at every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from markupsafe import Markup
from typing_extensions import override

from tl_l2norm.core.arguments import check_choice, one_or_several
from tl_l2norm.core.trace import Trace, TracesLike
from tl_l2norm.show.payload import payload
from tl_l2norm.show.quantities import CHANGE, NORM, RATIO, Quantity, medians, quantities_of
from tl_l2norm.show.shown import Shown, sequences_of
from tl_l2norm.show.token_text import static_text
from tl_l2norm.show.widget import TokensHTML


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExplorerWidget(TokensHTML):
    """Sequences to look around in. Shows itself in Jupyter; `save` writes a page, `widget` gives an anywidget."""

    shown: tuple[Shown, ...]
    """[sequence]"""
    quantities: tuple[Quantity, ...]
    """What tokens can be coloured by, the norm first; its ratio to the median is worked out from it."""
    layer: int
    """Shown first."""
    quantity: str
    """Shown first."""

    @property
    def traces(self) -> tuple[Trace, ...]:
        """[sequence] what was recorded of each."""
        return tuple(one.trace for one in self.shown)

    @override
    def __repr__(self) -> str:
        """One line for a terminal."""
        names = ", ".join([NORM, RATIO, *(quantity.name for quantity in self.quantities[1:])])
        return (
            f"ExplorerWidget({len(self.shown)} sequences, {sum(map(len, self.traces))} tokens, "
            f"{len(self.traces[0].layers)} layers; {names}; .save('explorer.html') writes a page)"
        )

    @override
    def _heading(self) -> str:
        return f"Tokens of {self.traces[0].provenance.model}"

    @override
    def _static(self, *, inline: bool) -> Markup:
        label, name, values = self._first_values()
        ends = np.cumsum([len(trace) for trace in self.traces])[:-1]
        n_sinks = sum(int(trace.is_sink[trace.index_of(self.layer)].sum()) for trace in self.traces)
        return static_text(
            self.shown,
            np.split(values, ends),
            layer=self.layer,
            name=name,
            caption=f"{label}, layer {self.layer}, {self.traces[0].provenance.model}",
            sinks_text=f"attention sink{'s' * (n_sinks > 1)} ({n_sinks}), off the scale" if n_sinks else "",
            max_tokens=None,
            inline=inline,
        )

    @override
    def _packed(self) -> bytes:
        start = {"layer": self.layer, "quantity": self.quantity}
        return payload(self.shown, self.quantities, start=start, compact=False)

    def _first_values(self) -> tuple[str, str, Any]:
        """What is shown first as label, name and [token] values at its layer."""
        wanted = NORM if self.quantity in (RATIO, CHANGE) else self.quantity
        found = next(quantity for quantity in self.quantities if quantity.name == wanted)
        row = found.values[found.layers.index(self.layer) if found.layers else 0]
        if self.quantity != RATIO:
            return found.label, found.name, row
        sinks = np.concatenate([trace.is_sink[trace.index_of(self.layer)].numpy() for trace in self.traces])
        (median,) = medians(row[None], sinks[None])
        return "L2 norm over the layer's median", RATIO, row / median if median else np.full_like(row, np.nan)


def explorer(
    traces: TracesLike | Mapping[Any, TracesLike],
    *,
    layer: SupportsIndex | None = None,
    quantity: str = NORM,
    quantities: Sequence[str] | None = None,
    features: Mapping[int, Sequence[int]] | None = None,
    titles: str | Sequence[str] | None = None,
    events: pd.DataFrame | None = None,
) -> ExplorerWidget:
    """Look around in sequences: colour, layer, search and filters are chosen on the page.

    Responses to the same problem or prompt stand side by side, and so do two or three traces; columns are asked for by name.
    What the interventions of a run did is marked. Values are kept to four digits.

    Args:
        traces: one or several of the same model and layers, completions, the `Generations` of a run or results; or
            `{name: traces}` for columns, as in `{"plain": plain, "suppressed": suppressed}`, one for each prompt in each.
        layer: shown first; negative counts from the last recorded one; default the last that has the quantity.
        quantity: what colours the tokens first: "norm", "ratio" (norm over its layer's median), "change" (norm over that of the
            same token in the first sequence beside it), the name of a metric or of an observer, "feature_sum", "feature_l0",
            "feature 9/12" (one of `features`), or "surprise" (of completions).
        quantities: names to keep beside the norm; default all. Each takes as many bytes as the norm.
        features: latents to show by themselves, by layer, as in `{9: [12, 40]}`; of traces that were recorded with SAEs.
        titles: [sequence] headings; default what is known of each.
        events: what interventions did, as `out.events()` gives it, its sequences numbered as they are given; found by itself
            for a whole `Generations`.

    Raises:
        ValueError: no traces, traces that are not comparable, columns of different lengths, a layer, quantity or feature that
            was not recorded, or titles of another number.

    Examples:
        >>> widget = l2.widgets.explorer({"thinking": think[:2], "direct": direct[:2]}, quantity="ratio")
        >>> widget
        ExplorerWidget(4 sequences, ... tokens, 12 layers; norm, ratio; .save('explorer.html') writes a page)
        >>> widget.save("explorer.html").name
        'explorer.html'
    """
    shown = sequences_of(traces, titles=None if titles is None else one_or_several(titles, str), events=events)
    found = quantities_of(shown, features=features, only=quantities)
    derived = [RATIO, *([CHANGE] if any(one.blocks for one in shown) else ())]
    check_choice("quantity", quantity, [*derived, *(one.name for one in found)])
    recorded = next((one.layers for one in found if one.name == quantity), ()) or shown[0].trace.layers
    first = shown[0].trace
    wanted = recorded[-1] if layer is None else first.layers[first.index_of(layer)]
    check_choice(f"layer (of {quantity})", str(wanted), [str(one) for one in recorded])
    return ExplorerWidget(shown=shown, quantities=found, layer=wanted, quantity=quantity)
