"""Which prompt was asked under which name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tl_l2norm.core.errors import InputError


def require_own_prompts(asked: Iterable[tuple[object, Sequence[int]]]) -> None:
    """Refuse one prompt under two names: what it gives would count as often as it is named.

    A prompt of one token, such as <bos>, asks nothing, and any number of texts may begin with it.

    Args:
        asked: name and token ids of each prompt.

    Raises:
        InputError: the same ids under two names.
    """
    names: dict[tuple[int, ...], str] = {}
    for name, ids in asked:
        if len(ids) > 1 and (other := names.setdefault(tuple(ids), str(name))) != str(name):
            raise InputError(
                f"the prompts {other!r} and {str(name)!r} are the same {len(ids)} tokens: each counts once, so give each once, "
                'and several samples of one the same label "prompt"'
            )
