"""What `generate` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tl_l2norm.core.errors import InputError
from tl_l2norm.core.trace import Trace
from tl_l2norm.interventions.log import Log
from tl_l2norm.recording.generations_html import generations_html
from tl_l2norm.recording.signals import Signals

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    r"""One response.

    Attributes:
        prompt: its text.
        text: of the response, without special tokens and stop string.
        answer: what of it follows the thinking.
        thinking: what it thinks, tags left out.
        prompt_tokens: their ids.
        tokens: ids of the response, a stop token included.
        finish_reason: "stop" or "length".
        forced: places in `tokens` of those that `think_on` wrote.
        prompt_index: which prompt it answers.
        sample: which of the prompt's `n` responses.
        seed: draws it again, given as `seed=[...]`.
        logprobs: [token] natural log-probability; None without recording.
        self_certainty: [token] `KL(U || p)`, nats; None without recording.
        token_confidence: [token] minus the mean log-probability of the 20 likeliest, nats; None without recording.
        trace: prompt and response as far as they were read back; None without recording.
        signals: what `read_signals` measured of it; None before.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> (completion,) = l2.generate(model, prompt, max_new_tokens=64, progress=False)
        >>> completion.thinking.strip(), completion.answer.strip(), completion.finish_reason
        ('7A-3=4', '4', 'stop')
        >>> completion.logprobs.shape, completion.trace.prompt_len
        (torch.Size([13]), 18)
    """

    prompt: str
    text: str
    """The response: special tokens other than those that mark thoughts, and a stop string, are left out."""
    answer: str
    """What of it follows the thinking; "" where it ends inside a thought."""
    thinking: str = ""
    """What it thinks, tags left out."""
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """Of the response, all that were sampled, a stop token included."""
    finish_reason: FinishReason
    """"stop" at a stop token or string, "length" at `max_new_tokens`."""
    forced: tuple[int, ...] = ()
    """Places in `tokens` of those that `think_on` wrote where others had been chosen."""
    prompt_index: int
    sample: int
    """Which of the prompt's `n` responses."""
    seed: int
    """Given as `seed=[...]`, it draws this response again, whatever stands beside it."""
    logprobs: Float[Tensor, " token"] | None
    """Natural log-probability of each token of the response under the model's own distribution, at temperature 1."""
    self_certainty: Float[Tensor, " token"] | None
    """`KL(U || p) = -log V - mean_j log p_j` where each token was chosen: how far from uniform the model was (Kang et al.,
    arXiv 2502.18581)."""
    trace: Trace | None
    """Prompt and response as far as they were read back (all but the last token); None if nothing was recorded."""
    token_confidence: Float[Tensor, " token"] | None = None
    """`-mean_j log p_j` over the 20 likeliest tokens where each token was chosen (Fu et al., arXiv 2508.15260); None also where
    the response was recorded before this was kept."""
    signals: Signals | None = None
    """What `read_signals` measured of the response; None before."""

    def __repr__(self) -> str:
        """One line."""
        return f"Completion({self.text!r:.60}, {len(self.tokens)} tokens, {self.finish_reason})"


@dataclass(frozen=True, slots=True, eq=False)
class Generations(Sequence[Completion]):
    """Responses in the order of their prompts, the `n` samples of a prompt together; they go wherever traces go.

    Attributes:
        completions: in the order of the prompts, each with its samples.
        log: what the interventions decided; None without.

    Examples:
        >>> questions = ["mod 10: 7A-3", "mod 10: 2B+1"]
        >>> prompts = [l2.chat_prompt(model.tokenizer, question, mode="direct") for question in questions]
        >>> out = l2.generate(model, prompts, n=2, temperature=1.0, max_new_tokens=4, progress=False)
        >>> len(out), len(out.traces)
        (4, 4)
        >>> out.to_frame()["prompt_index"].tolist()
        [0, 0, 1, 1]
        >>> tau = l2.quantile_thresholds(out, q=0.9)
    """

    completions: tuple[Completion, ...]
    log: Log | None = None
    """What the interventions decided; None without interventions."""

    @overload
    def __getitem__(self, index: int) -> Completion: ...
    @overload
    def __getitem__(self, index: slice) -> Generations: ...
    def __getitem__(self, index: int | slice) -> Completion | Generations:
        """One response, or several."""
        chosen = self.completions[index]
        return Generations(chosen, self.log) if isinstance(chosen, tuple) else chosen

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.completions)

    @property
    def texts(self) -> tuple[str, ...]:
        """The responses' texts."""
        return tuple(completion.text for completion in self.completions)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The responses' traces; empty if nothing was recorded."""
        return tuple(completion.trace for completion in self.completions if completion.trace is not None)

    def events(self) -> pd.DataFrame:
        """One entry for each decision of an intervention, see `Log.events`; `sequence` is a response's place in the whole run.

        Raises:
            ValueError: there was no intervention.
        """
        if self.log is None:
            raise InputError("nothing intervened: generate(..., interventions=[...])")
        return self.log.events()

    def to_frame(self) -> pd.DataFrame:
        """One entry per response: prompt_index, sample, prompt, text, n_prompt_tokens, n_tokens, finish_reason, seed."""
        names = ("prompt_index", "sample", "prompt", "text", "finish_reason", "seed")
        entries = [
            {name: getattr(c, name) for name in names} | {"n_prompt_tokens": len(c.prompt_tokens), "n_tokens": len(c.tokens)}
            for c in self.completions
        ]
        return pd.DataFrame(entries)

    def __repr__(self) -> str:
        """One line."""
        return f"Generations({len(self)} responses{'' if self.log is None else ', ' + ', '.join(self.log.names)})"

    def _repr_html_(self) -> str:
        return generations_html(self.completions)
