"""Views of traces for notebooks and reports."""

from tl_l2norm.show.explorer import ExplorerWidget, explorer
from tl_l2norm.show.tokens import TokensWidget, tokens, visible_text

__all__ = ["ExplorerWidget", "TokensWidget", "explorer", "tokens", "visible_text"]
