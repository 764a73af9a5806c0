"""Which tokens are a word."""

from __future__ import annotations

from collections.abc import Iterable

from tl_l2norm.core.arguments import as_names
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import Tokenizer
from tl_l2norm.text.sequences import decode

THINKING_WORDS = ("Wait", "Hmm", "Therefore", "So")
"""What Qian et al. (arXiv 2506.02867) call thinking tokens, those that their abstract and figures name."""


def thinking_tokens(tokenizer: Tokenizer | None, words: Iterable[str] = THINKING_WORDS) -> tuple[int, ...]:
    """Ids of all tokens whose text is one of these words, spaces and line breaks around it aside, written just so.

    Args:
        tokenizer: of the model or the engine, `model.tokenizer`.
        words: "Wait", "Hmm", "Therefore" and "So" by default: of the tokens at peaks of mutual information in Qian et al.,
            "Demystifying Reasoning Dynamics with Mutual Information" (arXiv 2506.02867), those that the text names.

    Returns:
        Ids, sorted.

    Raises:
        InputError: a word that no token is, because the tokenizer splits it.

    Examples:
        >>> ids = l2.interventions.thinking_tokens(model.tokenizer, ["mod", "max"])  # of words that this one has
        >>> [model.tokenizer.decode([i]) for i in ids]
        ['mod', 'max']
    """
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        raise InputTypeError(f"words are looked up in a tokenizer's vocabulary, got {tokenizer!r:.80}")
    wanted = [word.strip() for word in as_names("words", words)]
    if not all(wanted):
        raise InputError("words holds an empty one, which every blank would be")
    vocabulary = tokenizer.get_vocab()
    if all(word.isascii() for word in wanted):  # whose letters stand in the vocabulary as they are
        vocabulary = {piece: i for piece, i in vocabulary.items() if any(word in piece for word in wanted)}
    texts = {i: decode(tokenizer, [i]).strip() for i in vocabulary.values()}
    if lacking := sorted(set(wanted) - set(texts.values())):
        raise InputError(
            f"no token of this tokenizer is {' or '.join(map(repr, lacking))}, it writes it in several: give words that it has"
        )
    return tuple(sorted(i for i, text in texts.items() if text in wanted))
