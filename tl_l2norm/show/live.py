"""Watch a response while it is written, in a notebook or a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, SupportsIndex, get_args, runtime_checkable

from tl_l2norm.core.arguments import OnePerRow, check_choice, check_text
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.recording.think_on import ThinkOn
from tl_l2norm.recording.token_stream import TokenStep, TokenStream, stream
from tl_l2norm.show.following import Following, Outcome, RunningScale, Written
from tl_l2norm.show.notebook import NotebookView
from tl_l2norm.show.terminal import TerminalView
from tl_l2norm.text.inputs import SequenceLike

Display = Literal["auto", "notebook", "terminal"]


@runtime_checkable
class View(Protocol):
    """Where a response is drawn."""

    def begin(self, title: str, prompt: str) -> None:
        """Before the first token."""

    def show(self, step: TokenStep, value: float, following: Following) -> None:
        """A token, and its norm; NaN where it has none."""

    def end(self, outcome: Outcome, following: Following) -> None:
        """After the last."""


def live(
    model: Any,
    prompt: SequenceLike | Iterable[SequenceLike],
    *,
    layer: SupportsIndex | None = None,
    display: Display = "auto",
    title: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Iterable[str | SupportsIndex] | str | SupportsIndex | None = (),
    ignore_eos: bool = False,
    seed: OnePerRow = 0,
    interventions: Intervention | Sequence[Intervention] | None = (),
    prepend_bos: bool | None = None,
    sink_ratio: float | None = None,
    think_on: ThinkOn | None = None,
) -> TokenStream:
    """Write a response and draw it meanwhile: tokens lit by their norm as they come, and how the norms of late layers run.

    It is the response of `generate` and `stream`. Tokens at which an intervention did something are underlined, the answer is
    bold; the scale runs from the 5th to the 95th percentile of the norms so far, the prompt's included. Interrupted (Ctrl-C, or
    the kernel's button) it returns what was written until then.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        prompt: one, as in `generate`.
        layer: whose norms; by default the mean over late layers, sinks left out.
        display: where; "auto" takes the notebook that this runs in, else the terminal.
        title: above it.
        max_new_tokens: tokens at the most.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens.
        top_p: sample among the likeliest tokens that hold this much probability.
        stop: strings or token ids that end the response, beside those at which the model ends its turn.
        ignore_eos: go on past those at which the model ends its turn.
        seed: of the draws.
        interventions: what acts on the residual stream, in this order.
        prepend_bos: for a plain text: BOS or none; by default what the model's tokenizer adds.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's, as in `generate`.
        think_on: what is written where the response would end, so that it goes on.

    Returns:
        The stream that was drawn: its `trace` is that of what was written, its `completion` the whole response, None if it was
        interrupted.

    Raises:
        ValueError: bad input, several prompts, or a layer that the model lacks.
        NotImplementedError: an engine, or what `generate` refuses.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
        >>> written = l2.live(model, prompt, max_new_tokens=64, display="terminal")
        <|im_start|>user
        ...
        >>> written.completion.text == written.text, written.trace.prompt_len
        (True, 18)
    """
    check_choice("display", display, get_args(Display))
    check_text("title", title)
    tokens = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        ignore_eos=ignore_eos,
        seed=seed,
        interventions=interventions,
        prepend_bos=prepend_bos,
        sink_ratio=sink_ratio,
        think_on=think_on,
    )
    notebook = display == "notebook" or (display == "auto" and in_notebook())
    watch(tokens, NotebookView() if notebook else TerminalView(), layer=layer, title=title)
    return tokens


def watch(
    tokens: Written,
    view: View,
    *,
    layer: SupportsIndex | None = None,
    scale: RunningScale | None = None,
    title: str = "",
    prompt: bool = True,
) -> bool:
    """Draw a stream to its end; False if the user interrupted it.

    Args:
        tokens: what is drawn.
        view: where.
        layer: whose norms; by default the mean over late layers.
        scale: of another response that this one is held against; its own by default.
        title: above it.
        prompt: whether the prompt is shown.
    """
    following, whole = Following(tokens, layer=layer, scale=scale), True
    try:
        view.begin(title, tokens.prompt if prompt else "")
        for step in tokens:
            view.show(step, following.add(step), following)
    except KeyboardInterrupt:
        tokens.close()
        whole = False
    view.end(following.outcome(whole), following)
    return whole


def in_notebook() -> bool:
    """Whether an IPython kernel shows what is displayed: Jupyter's, VS Code's, Colab's."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None
