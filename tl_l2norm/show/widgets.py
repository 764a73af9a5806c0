"""Views of traces for notebooks and reports."""

from tl_l2norm.show.tokens import TokensWidget, tokens, visible_text

__all__ = ["TokensWidget", "tokens", "visible_text"]
