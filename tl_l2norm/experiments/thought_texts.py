"""Other text of the same length in place of a thought: what of norms and answers is left without the reasoning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import as_names, as_seed, check_choice, check_progress, check_text
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.core.layers import Layers
from tl_l2norm.core.presets import batch_size_of, sink_ratio_of
from tl_l2norm.core.prompts import require_own_prompts
from tl_l2norm.core.resampling import MIN_PROMPTS, generator
from tl_l2norm.core.trace import Trace
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.models.lens_check import require_lens
from tl_l2norm.recording.answers import Scored, score_answers
from tl_l2norm.recording.collect import collect
from tl_l2norm.tasks.results import Result, results_of
from tl_l2norm.text.sequences import pad_left, tokenize
from tl_l2norm.text.spans import answer_start, thought_span

ThoughtText = Literal["own", "filler", "shuffled", "another's"]
KINDS: tuple[ThoughtText, ...] = ("filler", "shuffled", "another's")

_FILLERS = ("...", "…", " .", ".")


def replaced_thoughts(
    model: Any,
    results: Result | Iterable[Result],
    *,
    kinds: ThoughtText | Sequence[ThoughtText] = KINDS,
    filler: str | None = None,
    layers: Layers = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[Trace, ...]:
    """Read each response with its own thought, and with other tokens in as many places of it; the answer stays as it is.

    "filler": a neutral token, or a few, again and again. "shuffled": the thought's own tokens in random order. "another's": the
    thought of another problem of the same family, of exactly as many tokens, whatever its answer; drawn where there are
    several, thoughts of the same tokens as one. Nothing is cut: the last tokens of a thought are loud, and other families have
    other types of tokens. A thought without such another has no "another's". What opens and closes a thought stays. Where no
    tags mark it, the thought is what comes before the sentence that states the answer.

    Teacher-forced: the model is made to read such text, it wouldn't have written it. So unusual text and missing reasoning
    come together ("shuffled" and "filler" are both); "another's" is ordinary reasoning, about something else. A norm that is as
    high there is no sign of reasoning about this problem; one that differs on "shuffled" and "filler" alone may be a sign of
    how ordinary the text is.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        results: of `run_modes`; direct ones, and those that think nothing, are passed over.
        kinds: which, beside the own thought.
        filler: text to repeat; by default "...", or what of the kind the tokenizer knows.
        layers: which blocks to record; all by default.
        metrics: what else to record, as in `collect`.
        seed: of orders and of whose thought is taken.
        batch_size: sequences at once, 8 by default (100 for tiny-reasoner).
        progress: show progress bars.

    Returns:
        A trace per response and kind, "own" first, with the labels of the response's trace and text (the kind), family (the
        problem's), response (its number, the same in all kinds), thought_from and thought_to (positions of the thought, the
        end left out), answer_logprob (nats: of the response's own answer after that text), says_answer (whether that answer
        is what the model, decoding greedily, would still say) and correct. A warning says how many have an "another's" where
        not all do.

    Raises:
        ValueError: unknown kinds; a filler without tokens; thinking responses whose answer's place isn't known; problems that
            ask the same.
        Unmeasurable: fewer than 8 responses that think; where "another's" is all that is asked for, fewer than 8 that have one.

    Examples:
        >>> traces = l2.experiments.replaced_thoughts(model, results, kinds="filler", layers="late", progress=False)
        >>> own, filler = ([t.labels["says_answer"] for t in traces if t.labels["text"] == kind] for kind in ("own", "filler"))
        >>> sum(own) > sum(filler)
        True
    """
    backend = backend_of(model)
    kinds = _kinds(kinds)
    seed = as_seed(seed)
    check_progress(progress)
    require_lens(backend)
    own = _thinking(results_of(results))
    fillers = _filler_ids(backend, filler) if "filler" in kinds else []
    texts = _Texts(own, fillers, seed)
    plans = [(kind, i) for kind in ("own", *kinds) for i in range(len(own)) if texts.made(kind, i) is not None]
    _say_lacking(plans, kinds, len(own))
    traces = [own[i].trace for _, i in plans]
    sequences = [texts.sequence(kind, i) for kind, i in plans]
    labels: list[Mapping[str, Any]] = []
    for (kind, i), trace in zip(plans, traces, strict=True):
        span = thought_span(trace)
        places = {"thought_from": span.start, "thought_to": span.stop}
        which = {"text": kind, "family": own[i].problem.family, "response": i}
        labels.append({**trace.labels, **which, **places, "correct": bool(own[i].correct)})
    batch_size = batch_size_of(model, batch_size)
    sink_ratio = sink_ratio_of(model, None, of=[trace.provenance.sink_ratio for trace in traces])
    found = collect(
        model,
        sequences,
        segments=[trace.segments for trace in traces],
        layers=layers,
        metrics=metrics,
        labels=labels,
        sink_ratio=sink_ratio,
        batch_size=batch_size,
        progress=progress,
    )
    n_answer = [len(trace) - answer_start(trace) for trace in traces]  # type: ignore[operator]
    scores = _scores(backend, sequences, n_answer, batch_size, progress)
    return tuple(t.with_labels(answer_logprob=s.logprob, says_answer=s.greedy) for t, s in zip(found, scores, strict=True))


def _kinds(given: Any) -> tuple[ThoughtText, ...]:
    names = as_names("kinds", given)
    for name in names:
        check_choice("kinds", name, KINDS)
    if not names:
        raise InputError(f"no kinds given: one or several of {', '.join(map(repr, KINDS))}")
    return tuple(kind for kind in get_args(ThoughtText) if kind in names)


def _thinking(results: Sequence[Result]) -> list[Result]:
    thinking = [result for result in results if result.mode == "think"]
    if unknown := [result for result in thinking if answer_start(result.trace) is None]:
        raise InputError(
            f"{len(unknown)} responses don't say where their answer stands, such as that to {unknown[0].problem.id}: leave "
            "them out, [r for r in results if 'answer_at' in r.trace.labels]"
        )
    require_own_prompts((r.problem.id, r.trace.tokens[: r.trace.prompt_len].tolist()) for r in thinking)
    thinking = [result for result in thinking if len(thought_span(result.trace))]
    if len(thinking) < MIN_PROMPTS:
        raise Unmeasurable(f"{len(thinking)} responses think before they answer: at least {MIN_PROMPTS} are needed")
    return thinking


def _filler_ids(backend: Backend, filler: str | None) -> list[int]:
    tokenizer = backend.tokenizer
    if tokenizer is None:
        raise InputError("the model has no tokenizer: there is no filler")
    unknown = getattr(tokenizer, "unk_token_id", None)
    if filler is not None:
        check_text("filler", filler)
    for text in _FILLERS if filler is None else (filler,):
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        if ids and unknown not in ids and (filler is not None or len(ids) <= 3):
            return ids
    raise InputError(
        f"the tokenizer has no tokens for {_FILLERS if filler is None else repr(filler)}: give filler=, a text that it knows"
    )


class _Texts:
    """What stands in place of thoughts."""

    def __init__(self, results: Sequence[Result], filler: Sequence[int], seed: int) -> None:
        self.results, self.filler = results, filler
        self.spans = [thought_span(result.trace) for result in results]
        self._seed = seed
        tokens = (result.trace.tokens.tolist() for result in results)
        self._own: list[list[int]] = [ids[span.start : span.stop] for ids, span in zip(tokens, self.spans, strict=True)]
        self._alike: dict[tuple[str, int], list[int]] = {}
        for i, result in enumerate(results):
            self._alike.setdefault((result.problem.family, len(self.spans[i])), []).append(i)
        self._others = [self._another(i) for i in range(len(results))]

    def made(self, kind: str, i: int) -> list[int] | None:
        """The tokens of response i's thought in this kind; None where there is no other of that family and length."""
        own, n = self._own[i], len(self.spans[i])
        if kind == "own":
            return own
        if kind == "filler":
            return (list(self.filler) * (n // len(self.filler) + 1))[:n]
        if kind == "shuffled":
            order = generator(self._seed + i).permutation(n)
            return [own[k] for k in order]
        return self._others[i]

    def sequence(self, kind: str, i: int) -> list[int]:
        """Prompt, thought and answer."""
        tokens, span, thought = self.results[i].trace.tokens.tolist(), self.spans[i], self.made(kind, i)
        assert thought is not None
        return [*tokens[: span.start], *thought, *tokens[span.stop :]]

    def _another(self, i: int) -> list[int] | None:
        """A thought of another problem of the family, as long and not the same, drawn of all such."""
        # any answer will do: where there are two, demanding the other one would choose by the types of tokens
        own, problem = self._own[i], self.results[i].problem
        alike = self._alike[problem.family, len(own)]
        others = (self._own[j] for j in alike if self.results[j].problem.id != problem.id)
        texts = [list(text) for text in dict.fromkeys(map(tuple, others)) if list(text) != own]  # what many wrote counts once
        return texts[generator(self._seed + i).integers(len(texts))] if texts else None


def _say_lacking(plans: Sequence[tuple[str, int]], kinds: Sequence[str], n: int) -> None:
    held = sum(kind == "another's" for kind, _ in plans)
    if "another's" not in kinds or held == n:
        return
    said = f"only {held} of {n} thoughts share family and length with that of another problem"
    if held < MIN_PROMPTS and len(kinds) == 1:
        raise Unmeasurable(f"{said}: at least {MIN_PROMPTS} are needed")
    warnings.warn(f'{said}: the others have no "another\'s"', stacklevel=3)


def _scores(
    backend: Backend, sequences: Sequence[Sequence[int]], n_answer: Sequence[int], batch_size: int, progress: bool
) -> list[Scored]:
    """The last tokens of each sequence, as the model expects them."""
    items, found = tokenize(backend, sequences, prompt_lens=[1] * len(sequences)), dict[int, Scored]()
    bar = tqdm(total=len(items), desc="answers", unit="seq", disable=not progress, delay=2)
    with torch.no_grad(), bar:
        for numbers in batches(backend, items, batch_size):
            tokens, mask = pad_left([items[i].tokens for i in numbers], backend.device)
            with backend.capture_stream(backend.n_layers - 1) as streams:
                backend.forward(tokens, mask)
            scores = score_answers(backend, streams[0], tokens, [n_answer[i] for i in numbers])
            found.update(zip(numbers, scores, strict=True))
            bar.update(len(numbers))
    return [found[i] for i in range(len(items))]
