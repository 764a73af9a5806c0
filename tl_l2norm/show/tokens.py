"""Tokens coloured by the norm of the residual stream at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from markupsafe import Markup
from typing_extensions import override

from tl_l2norm.core.arguments import as_integer, one_or_several
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace, TracesLike, require_comparable, traces_of
from tl_l2norm.show.payload import payload
from tl_l2norm.show.quantities import NORM, Quantity
from tl_l2norm.show.shown import Shown, title_of
from tl_l2norm.show.token_text import norm_text, static_text, visible_text
from tl_l2norm.show.widget import TokensHTML

__all__ = ["TokensWidget", "norm_text", "tokens", "visible_text"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokensWidget(TokensHTML):
    """Tokens of one or several sequences on one colour scale. Shows itself in Jupyter; `save` writes a page."""

    traces: tuple[Trace, ...]
    layer: int
    max_tokens: int | None
    titles: tuple[str, ...]
    """[sequence]"""

    @property
    def scale(self) -> tuple[float, float] | None:
        """Least and greatest finite norm of the tokens that are no sinks; None where there is none."""
        norms = torch.cat([trace.at(self.layer)[~self._sinks(trace)] for trace in self.traces])
        norms = norms[norms.isfinite()]
        return (float(norms.min()), float(norms.max())) if len(norms) else None

    @property
    def n_sinks(self) -> int:
        """Attention sinks at this layer, over all sequences."""
        return sum(int(self._sinks(trace).sum()) for trace in self.traces)

    @override
    def __repr__(self) -> str:
        """One line for a terminal."""
        n_tokens = sum(map(len, self.traces))
        nothing = "only sinks" if self.n_sinks == n_tokens else "no finite norms"
        norms = "norms {} to {}".format(*map(norm_text, self.scale)) if self.scale else nothing
        return (
            f"TokensWidget({len(self.traces)} sequences, {n_tokens} tokens, layer {self.layer}, {norms}, "
            f"{self.n_sinks} sinks; .save('tokens.html') writes a page)"
        )

    @override
    def _heading(self) -> str:
        return f"Norms at layer {self.layer}"

    @override
    def _static(self, *, inline: bool) -> Markup:
        return static_text(
            self._shown,
            [trace.at(self.layer).numpy() for trace in self.traces],
            layer=self.layer,
            name=NORM,
            caption=f"L2 norm of the residual stream after layer {self.layer}, {self.traces[0].provenance.model}",
            sinks_text=self._sinks_text(),
            max_tokens=self.max_tokens,
            inline=inline,
        )

    @override
    def _packed(self) -> bytes:
        norms = torch.cat([trace.at(self.layer) for trace in self.traces])[None].numpy()
        start = {"layer": self.layer, "quantity": NORM}
        norm = Quantity(NORM, "L2 norm", (self.layer,), norms)
        return payload(self._shown, [norm], start=start, compact=True, max_tokens=self.max_tokens)

    @property
    def _shown(self) -> list[Shown]:
        return [
            Shown(trace=t, title=title, column=i) for i, (t, title) in enumerate(zip(self.traces, self.titles, strict=True))
        ]

    def _sinks(self, trace: Trace) -> torch.Tensor:
        return trace.is_sink[trace.index_of(self.layer)]

    def _sinks_text(self) -> str:
        if not self.n_sinks:
            return ""
        greatest = max(float(t.at(self.layer)[self._sinks(t)].max()) for t in self.traces if self._sinks(t).any())
        what = "an attention sink" if self.n_sinks == 1 else f"{self.n_sinks} attention sinks"
        return f"{what}, norm up to {norm_text(greatest)}, off the scale"


def tokens(
    trace: TracesLike,
    *,
    layer: SupportsIndex = -1,
    max_tokens: int | None = None,
    titles: str | Sequence[str] | None = None,
) -> TokensWidget:
    """Colour tokens by their norm at one layer; several traces share the colour scale.

    Args:
        trace: one, or several of the same model and layers; completions and the `Generations` of a run too.
        layer: a recorded layer; negative counts from the last recorded one.
        max_tokens: show at most so many of each sequence, from its start; default all.
        titles: [sequence] headings; default what the traces' labels say.

    Raises:
        ValueError: no traces, traces that are not comparable, a layer that was not recorded, or titles of another number.

    Examples:
        >>> widget = l2.widgets.tokens([think[0], direct[0]], layer=9)
        >>> widget
        TokensWidget(2 sequences, 53 tokens, layer 9, norms ... to ...; .save('tokens.html') writes a page)
        >>> widget.save("tokens.html").name
        'tokens.html'
    """
    traces = traces_of(trace)
    require_comparable(traces)
    if max_tokens is not None:
        max_tokens = as_integer("max_tokens", max_tokens, least=1)
    titles = None if titles is None else one_or_several(titles, str)
    if titles is not None and len(titles) != len(traces):
        raise InputError(f"{len(titles)} titles for {len(traces)} traces: give one for each")
    return TokensWidget(
        traces=traces,
        layer=traces[0].layers[traces[0].index_of(layer)],
        max_tokens=max_tokens,
        titles=titles if titles is not None else tuple(map(title_of, traces)),
    )
