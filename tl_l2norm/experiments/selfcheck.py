"""Check on the user's own model that the numbers are right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.tables import html_table, render_table
from tl_l2norm.experiments.engine_check import engine_measures
from tl_l2norm.experiments.file_check import compare_with_file
from tl_l2norm.experiments.measures import TEXTS, Measure, relative, tolerance
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.lens_check import require_lens
from tl_l2norm.models.provenance import library_versions
from tl_l2norm.recording.collect import collect
from tl_l2norm.recording.engine import Engine
from tl_l2norm.recording.generate import generate
from tl_l2norm.recording.stream import StreamRecorder
from tl_l2norm.text.sequences import pad_left

_REFUSALS = (InputError, FloatingPointError)
"""What the library says on purpose of a model that can't run as it is."""
_MORE = 8  # tokens that are generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One property of a model under this library."""

    name: str
    measured: float | None
    """None: not compared, `meaning` says why."""
    bound: float
    meaning: str

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound; NaN is not, nor is what wasn't compared."""
        return self.measured is not None and self.measured <= self.bound

    @property
    def result(self) -> Literal["pass", "FAIL", "not compared"]:
        """As the table has it."""
        return "not compared" if self.measured is None else "pass" if self.passed else "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """The checks that `selfcheck` made of a model; prints as a table."""

    checks: tuple[Check, ...]
    model: str
    backend: str
    dtype: str
    device: str
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether no check failed; see `compared` for what couldn't be made."""
        return all(check.result != "FAIL" for check in self.checks)

    @property
    def compared(self) -> bool:
        """Whether nothing was left out: a model was compared with its files, an engine with the same model of `load_model`."""
        return all(check.result != "not compared" for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        """One entry per check: check, result, measured, bound, meaning."""
        return pd.DataFrame(
            [
                {
                    "check": check.name,
                    "result": check.result,
                    "measured": "" if check.measured is None else f"{check.measured:.2g}",
                    "bound": f"{check.bound:.2g}",
                    "meaning": check.meaning,
                }
                for check in self.checks
            ]
        )

    def __str__(self) -> str:
        """The table, with the model and the versions above it."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        head = f"{self.model} on {self.backend}, {self.dtype}, {self.device}\n{versions}\n"
        return head + render_table(self.to_frame())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.to_frame())


def selfcheck(model: Any, *, against: Any = None) -> SelfCheck:
    """Check in under a minute that norms of this model, as it is loaded, are what they should be.

    Norms against plain hooks on the blocks, decoding with a cache against one pass, a sequence in a batch against alone, logits
    with and without recording, the logit lens at the last layer, and that no hook is left behind; a measure that is refused
    fails with the reason. Then the model against its files: they are read again as plain Hugging Face has them, and the tokens
    of some texts and chats, norms behind every block, logits and the tokens that end a turn are compared. Where it isn't known
    which files are the model's, these checks say "not compared". Nothing is downloaded.

    Of an engine: that every token that is read has one row of norms, that a response's norms are those it has alone, and that
    a planted suppression changes exactly the planned tokens; and, where the same model is given as `load_model` loads it, norms
    of plain and of suppressed responses against one pass over the same tokens. That second copy is never loaded unasked: an
    engine holds the whole model already. Without it these two say "not compared".

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, or an engine of `load_engine`.
        against: of an engine alone: the same model, in the same dtype, of `load_model`.

    Raises:
        ValueError: `against` is another model.

    Examples:
        >>> outcome = l2.selfcheck(model)
        >>> outcome.passed, outcome.compared
        (True, True)
        >>> outcome.to_frame()["check"].tolist()[:5]
        ['norms', 'cache', 'batch', 'logits', 'logit lens']
    """
    if isinstance(model, Engine):
        checks = _taken(engine_measures(model, against), model.dtype)
        return _outcome(model, checks, " ".join(f"{name}={value}" for name, value in model.options.items()))
    if against is not None:
        raise InputError("against= is for an engine: a model is compared with its files")
    backend = backend_of(model)
    before = count_hooks(model)
    with torch.no_grad():
        checks = _taken(_measures(backend), backend.dtype)
        checks += [Check(**compared._asdict()) for compared in compare_with_file(backend)]
    checks.append(
        Check(name="hooks left", measured=float(count_hooks(model) - before), bound=0.0, meaning="hooks of ours still attached")
    )
    return _outcome(backend, checks)


def _taken(measures: Iterable[Measure], dtype: torch.dtype) -> list[Check]:
    checks = []
    for name, meaning, exact, take, missing in measures:
        bound = 0.0 if exact else tolerance(dtype)
        try:
            measured, note = (take(), "") if missing is None else (None, missing)
        except _REFUSALS as error:  # the other checks say more
            measured, note = math.inf, str(error)
        checks.append(Check(name=name, measured=measured, bound=bound, meaning=f"{meaning}: {note}" if note else meaning))
    return checks


def _outcome(model: Backend | Engine, checks: list[Check], options: str = "") -> SelfCheck:
    dtype = str(model.dtype).removeprefix("torch.")
    return SelfCheck(
        checks=tuple(checks),
        model=model.model_name,
        backend=model.name,
        dtype=f"{dtype}, {options}" if options else dtype,
        device=str(model.device),
        versions=library_versions() | dict(model.versions),
    )


def count_hooks(model: Any) -> int:
    """Hooks on all hook points of a model, whoever put them there."""
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules() if isinstance(m, HookPoint))


def _measures(backend: Backend) -> Iterator[Measure]:
    for name, meaning, exact, take in (
        ("norms", "our norms against plain hooks on the blocks", False, _norms),
        ("cache", "norms while decoding against one pass over the result", False, _cache),
        ("batch", "norms in a left-padded batch against alone", False, _batch),
        ("logits", "logits with recording against without (bit for bit)", True, _logits),
        ("logit lens", "unembed(last layer) against the model's logits", False, _logit_lens),
    ):
        yield Measure(name, meaning, exact, partial(take, backend))


def _tokens(backend: Backend) -> list[list[int]]:
    if backend.tokenizer is None:
        size = int(backend.model.cfg.d_vocab)
        return [[(7 * i + 3) % size for i in range(19)], [(5 * i + 2) % size for i in range(8)]]
    texts = [list(backend.tokenizer(text).input_ids)[: backend.n_ctx - _MORE] for text in TEXTS]
    embedded = len(next(backend.model.embed.parameters()))  # a bridge takes d_vocab from its tokenizer
    if (largest := max(map(max, texts))) >= embedded:
        raise InputError(f"the tokenizer gives token {largest}, the model has {embedded}: it is another model's")
    return texts


def _one(backend: Backend) -> tuple[Tensor, Tensor]:
    return pad_left(_tokens(backend)[:1], backend.device)


def _norms(backend: Backend) -> float:
    tokens, mask = _one(backend)
    trace = collect(backend.model, tokens[0], progress=False)[0]
    return relative(trace.l2_norms, _plain_norms(backend, tokens, mask))


def _plain_norms(backend: Backend, tokens: Tensor, mask: Tensor) -> Float[Tensor, "layer pos"]:
    """Of what each block returns, by torch's own hooks."""
    norms: list[Tensor] = []

    def note(_module: Any, _args: Any, out: Any) -> None:
        norms.append((out if isinstance(out, Tensor) else out[0])[0].float().norm(dim=-1).cpu())

    handles = [block.register_forward_hook(note) for block in backend.model.blocks]
    try:
        backend.forward(tokens, mask)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(norms)


def _cache(backend: Backend) -> float:
    done = generate(backend.model, _tokens(backend)[0], max_new_tokens=_MORE, ignore_eos=True, progress=False)[0]
    assert done.trace is not None
    whole = collect(backend.model, done.trace, progress=False)[0]
    return relative(done.trace.l2_norms, whole.l2_norms)


def _batch(backend: Backend) -> float:
    tokens = _tokens(backend)
    together = collect(backend.model, tokens, progress=False)
    alone = [collect(backend.model, one, progress=False)[0] for one in tokens]
    return max(relative(a.l2_norms, b.l2_norms) for a, b in zip(together, alone, strict=True))


def _logits(backend: Backend) -> float:
    tokens, mask = _one(backend)
    plain, _ = backend.forward(tokens, mask, logits="all")
    recorder = StreamRecorder(backend, range(backend.n_layers))
    with recorder.attached():
        recorded, _ = backend.forward(tokens, mask, logits="all")
    assert plain is not None and recorded is not None
    return float((plain - recorded).abs().max())


def _logit_lens(backend: Backend) -> float:
    """Largest difference over the logits' own spread: single logits may be near zero."""
    tokens, mask = _one(backend)
    with backend.capture_stream(backend.n_layers - 1) as streams:
        logits, _ = backend.forward(tokens, mask, logits="all")
    assert logits is not None
    off = float((backend.unembed(streams[0]) - logits).float().abs().max() / logits.float().std())
    if not off <= tolerance(backend.dtype):
        require_lens(backend)  # raises, with the reason, where logits come another way
    return off
