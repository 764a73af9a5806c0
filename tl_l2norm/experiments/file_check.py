"""Compare a loaded model with its files, read again as plain Hugging Face has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.models.agreement import TOLERANCE, lens_pass, logits_differ_by, norms_differ_by, plain_pass
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.reading import Plain, few, read
from tl_l2norm.models.sources import source_of
from tl_l2norm.text.turn_ends import turn_ends

_TEXT = (
    "A river rises in the hills, runs through 3 villages and 14 fields, and reaches the sea after 212 kilometres. Who walks "
    "along it at 4 kilometres an hour, six hours a day, needs 212 / 24 days, that is nine days with a short last one. "
)
_TEXTS = (_TEXT, "  Two spaces,\ttab\n\nand CAPS: caf\u00e9 \u2014 \u6570\u5b66 12345.67", "a")
_TALKS = (
    [{"role": "user", "content": "How much is 7 times 8?"}],
    [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Go on."}],
)
_NAMES = ("file: tokenizer", "file: norms", "file: logits", "file: turn ends")
_USUAL, _LONGEST = 256, 1024  # tokens


class Compared(NamedTuple):
    """One property that was compared; `measured` is None where there was nothing to compare with."""

    name: str
    measured: float | None
    bound: float
    meaning: str


def compare_with_file(backend: Backend) -> tuple[Compared, ...]:
    """Tokens of texts, norms behind every block, logits, and tokens that end a turn: the loaded model against its files."""
    try:
        if backend.centred:
            raise Unmeasurable("its weights were processed as they were loaded, its files' are not")
        source = source_of(backend.model)
        plain = _read(source, backend)
    except (Unmeasurable, InputError) as error:
        return tuple(Compared(name, None, 0.0, str(error)) for name in _NAMES)
    tokens, unseen = _tokens(backend, plain.model.config)
    ours, truth = lens_pass(backend, tokens), plain_pass(plain.model, tokens)
    bound = TOLERANCE.get(backend.dtype, 1e-1)
    reader = " (by transformers' GGUF reader, as it was loaded)" if source.kind == "gguf" else ""
    against = f"against plain Hugging Face from {source.name}{reader}, {len(tokens)} tokens{unseen}"
    return (
        _tokenizer(backend.tokenizer, plain.tokenizer),
        Compared("file: norms", norms_differ_by(ours, truth), bound, f"norms behind every block {against}"),
        Compared("file: logits", logits_differ_by(ours, truth), 10 * bound, f"logits {against}"),
        _ends(backend, plain),
        *_unused(plain),
    )


def _read(source: Any, backend: Backend) -> Plain:
    plain = read(source, backend.dtype, download=False)
    plain.model.set_attn_implementation("eager")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in plain.model.parameters())
    room = torch.cuda.mem_get_info(backend.device)[0] if backend.device.type == "cuda" else 0
    return plain._replace(model=plain.model.to(backend.device)) if room > 1.5 * weights else plain


def _tokens(backend: Backend, config: Any) -> tuple[Int[Tensor, " pos"], str]:
    """Tokens to compare on, if possible more than the attention window and the unscaled context; and a remark on what is not
    reached.
    """
    loaded = _config(backend)
    reach = [("window", getattr(config, "sliding_window", None)), ("window", _window(loaded))]
    reach += [("unscaled length", _unscaled(config)), ("unscaled length", _unscaled(loaded))]
    wanted = max([_USUAL, *(n + 32 for _, n in reach if n and n + 32 <= _LONGEST)])
    n_tokens = min(wanted, backend.n_ctx)
    unseen = [f"{what} of {n}" for what, n in dict.fromkeys(reach) if n and n >= n_tokens]
    return _some(backend, n_tokens), f" (its {' and '.join(unseen)} not reached)" if unseen else ""


def _config(backend: Backend) -> Any:
    """What the loaded model was made from."""
    model = getattr(backend.model, "original_model", None)
    return backend.model.cfg if model is None else model.config.get_text_config()


def _window(config: Any) -> int | None:
    if getattr(config, "use_local_attn", False):  # HookedTransformer's
        return int(config.window_size)
    return getattr(config, "sliding_window", None)


def _unscaled(config: Any) -> int | None:
    if getattr(config, "use_NTK_by_parts_rope", False):  # HookedTransformer's
        return int(config.NTK_original_ctx_len)
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)


def _some(backend: Backend, n_tokens: int) -> Int[Tensor, " pos"]:
    if backend.tokenizer is None:
        return (7 * torch.arange(n_tokens) + 3) % backend.d_vocab
    embedded = len(next(backend.model.embed.parameters()))
    once = [token for token in backend.tokenizer(_TEXT).input_ids if token < embedded] or [0]
    return torch.tensor((once * (n_tokens // len(once) + 1))[:n_tokens])


def _ends(backend: Backend, plain: Plain) -> Compared:
    named = getattr(plain.model.generation_config, "eos_token_id", None)
    known = frozenset() if named is None else frozenset([named] if isinstance(named, int) else named)
    size = len(plain.model.get_input_embeddings().weight)  # a reader may give a tokenizer an end that the model lacks
    expected = frozenset(end for end in turn_ends(plain.tokenizer, known) if 0 <= end < size)
    loaded = backend.eos_token_ids()
    if (own := getattr(plain.tokenizer, "eos_token_id", None)) is not None and backend.tokenizer is not None:
        expected, loaded = expected | {own}, loaded | {getattr(backend.tokenizer, "eos_token_id", own)}  # another one, anywhere
    missing, added = sorted(expected - loaded), sorted(loaded - expected)
    meaning = f"tokens that end a turn: {sorted(expected)} in the files"
    if missing or added:
        meaning += f"; the loaded model lacks {missing} and adds {added}"
    return Compared("file: turn ends", float(len(missing) + len(added)), 0.0, meaning)


def _unused(plain: Plain) -> list[Compared]:
    """What fails where the files have weights that the model has no place for: they may be those of another model."""
    if not plain.unused:
        return []
    meaning = f"weights in the files that have no place in {type(plain.model).__name__}: {few(plain.unused)}"
    return [Compared("file: weights", float(len(plain.unused)), 0.0, meaning)]


def _tokenizer(loaded: Any, expected: Any) -> Compared:
    """How many texts become other tokens, and conversations another prompt, than with the files' tokenizer."""
    name = "file: tokenizer"
    if loaded is None or expected is None:
        return Compared(name, None, 0.0, f"{'the loaded model has' if loaded is None else 'its files have'} no tokenizer")
    texts = [text for text in _TEXTS if not _same_tokens(loaded, expected, text)]
    talks = [talk for talk in _TALKS if _rendered(loaded, talk) != _rendered(expected, talk)]
    meaning = f"texts and chats that become other tokens than with the files' tokenizer, of {len(_TEXTS) + len(_TALKS)}"
    if texts:
        ours, theirs = (list(tokenizer(texts[0]).input_ids)[:4] for tokenizer in (loaded, expected))
        meaning += f"; {texts[0][:12]!r}: {ours} where the files say {theirs}"
    if talks:
        meaning += "; the chat template is another one"
    if any(_adds_bos(loaded, expected, text) for text in _TEXTS):
        meaning += ". BOS before plain texts: added by TransformerLens, the files add none; prepend_bos=False leaves it out"
    return Compared(name, float(len(texts) + len(talks)), 0.0, meaning)


def _same_tokens(loaded: Any, expected: Any, text: str) -> bool:
    return list(loaded(text).input_ids) == list(expected(text).input_ids) or _adds_bos(loaded, expected, text)


def _adds_bos(loaded: Any, expected: Any, text: str) -> bool:
    """Whether all that the files lack is BOS, by the setting that TransformerLens gives a tokenizer where it can."""
    ours, theirs = (list(tokenizer(text).input_ids) for tokenizer in (loaded, expected))
    return bool(getattr(loaded, "add_bos_token", False)) and ours == [expected.bos_token_id, *theirs]


def _rendered(tokenizer: Any, talk: list[dict[str, str]]) -> str | None:
    """The prompt of a conversation; None without a template, or with one that can't render it."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    except (ValueError, TemplateError):
        return None
