"""What becomes of a sequence that was written: a response, and a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_l2norm.core.trace import Label, Trace
from tl_l2norm.models.observer import joined
from tl_l2norm.recording.completions import Completion
from tl_l2norm.recording.decoder import Growing
from tl_l2norm.recording.stops import Stops
from tl_l2norm.recording.stream import NORM
from tl_l2norm.recording.traces import Recording
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.sequences import TokenSequence, token_texts


@dataclass(frozen=True)
class Ending:
    """What makes a response of a sequence that has ended."""

    boundaries: Boundaries
    stops: Stops
    recording: Recording | None = None
    """None, as where it records nothing, for responses without traces."""
    temperature: float | None = None
    labels: Sequence[Mapping[str, Label]] | None = None
    """By prompt."""

    def complete(self, row: Growing, said: Sequence[str] | None = None) -> Completion:
        """The response of a row that has ended; `said`: what each of its tokens adds to the text, where that was read."""
        assert row.finish_reason is not None
        tokens, start = (*row.item.tokens, *row.new), len(row.item)
        if said is None:
            texts = token_texts(self.boundaries.tokenizer, tokens)
        else:
            texts = (*token_texts(self.boundaries.tokenizer, row.item.tokens), *said)
        reading, segments = self.boundaries.read_response(tokens, texts, start)
        if row.finish_reason == "stop" and (cut := self.stops.cut(reading.text)) is not None:
            reading = reading.up_to(cut)
        read_back = TokenSequence(tokens=tokens[:-1], prompt_len=start, segments=segments[:-1], texts=texts[:-1])
        logprobs, self_certainty, confidence = torch.cat(row.scores, dim=1) if row.scores else (None, None, None)
        return Completion(
            prompt="".join(texts[:start]) if self.boundaries.tokenizer else "",
            text=reading.text if self.boundaries.tokenizer else "",
            answer=reading.answer if self.boundaries.tokenizer else "",
            thinking=reading.thinking if self.boundaries.tokenizer else "",
            prompt_tokens=row.item.tokens,
            tokens=tuple(row.new),
            finish_reason=row.finish_reason,
            forced=tuple(row.forced),
            prompt_index=row.prompt,
            sample=row.sample,
            seed=row.seed,
            logprobs=logprobs,
            self_certainty=self_certainty,
            token_confidence=confidence,
            trace=self._trace(row, read_back),
        )

    def so_far(self, row: Growing) -> Trace | None:
        """The trace of a row, ended or not, as far as it was read back and recorded; None where nothing was."""
        recorded = joined(row.recorded).get(NORM)
        if not isinstance(recorded, Tensor):
            return None
        start, n = len(row.item), recorded.shape[-1]
        tokens = (*row.item.tokens, *row.new)[:n]
        texts = token_texts(self.boundaries.tokenizer, tokens)
        _, segments = self.boundaries.read_response(tokens, texts, start)
        return self._trace(row, TokenSequence(tokens=tokens, prompt_len=start, segments=segments, texts=texts))

    def _trace(self, row: Growing, read_back: TokenSequence) -> Trace | None:
        if self.recording is None or not self.recording.records:
            return None
        own = {} if self.labels is None else self.labels[row.prompt]
        recorded = joined(row.recorded)
        return self.recording.trace(read_back, recorded, seed=row.seed, temperature=self.temperature, labels=own)
