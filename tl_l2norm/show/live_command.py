"""What `tl-l2norm live` asks for and does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tl_l2norm.core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from tl_l2norm.core.trace import Trace
    from tl_l2norm.experiments.arms import Arm
    from tl_l2norm.interventions.base import Intervention
    from tl_l2norm.show.following import RunningScale

_FLAGS = {"suppress": ("suppression", "high"), "alrr": ("alrr", "ALRR 5%"), "erss": ("erss", "ERSS soon")}
"""Each a shipped file of arms, and an arm of it."""
_LENGTH = 256


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command, beside those of the model."""
    command.add_argument("prompt", nargs="?", default=None, help="what to ask; read from standard input if it is left out")
    command.add_argument(
        "--mode",
        choices=("think", "direct", "plain"),
        default=None,
        help="the prompt as a chat in which the model thinks first or answers at once, or as it stands; think, and plain where "
        "the model has no chat template",
    )
    acts = command.add_mutually_exclusive_group()
    for flag, (file, arm) in _FLAGS.items():
        says = f"the arm {arm!r} of the shipped {file} arms".replace("%", "%%")
        acts.add_argument(f"--{flag}", action="store_true", help=says)
    acts.add_argument("--arms", metavar="FILE.toml", default=None, help="an arm of a file, as for evaluate")
    command.add_argument("--arm", metavar="NAME", default=None, help="which of --arms; the first that intervenes by default")
    command.add_argument("--max-new-tokens", type=int, default=_LENGTH, help="tokens at the most")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-k", type=int, default=None, help="sample among the k most likely tokens")
    command.add_argument("--top-p", type=float, default=None, help="sample among the likeliest that hold this probability")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the response; may be repeated")
    command.add_argument("--seed", type=int, default=0, help="of the draws")
    command.add_argument("--layer", type=int, default=None, help="whose norms; the mean over the late layers by default")
    command.add_argument("--sink-ratio", type=float, default=None, help="bound of attention sinks; 5, 20 for tiny-reasoner")
    command.add_argument("--out", metavar="DIR", default=None, help="keep the traces here, for load_traces")
    command.add_argument("--page", metavar="FILE.html", default=None, help="write what was drawn as an explorer, too")


def run(options: argparse.Namespace, load: Callable[[], Any]) -> int:
    """Draw the response, with an intervention behind the plain one; returns the exit code, 130 if it was interrupted."""
    from tl_l2norm.core.storage import require_place
    from tl_l2norm.show.page import page_path

    prompt = _prompt(options)
    arm = _arm(options)  # what can be refused is, before a model is loaded
    if options.out is not None:
        require_place(options.out, "--out")
    if options.page is not None:
        page_path(options.page, "--page")
    model = load()
    return _Drawing(model, _asked(model, prompt, options.mode), options).run(arm)


class _Drawing:
    """Responses to one prompt, one below the other on one scale."""

    def __init__(self, model: Any, asked: Any, options: argparse.Namespace) -> None:
        self._model, self._asked, self._options = model, asked, options
        self._traces: list[Trace] = []
        self._events: pd.DataFrame | None = None
        self._scale: RunningScale | None = None

    def run(self, arm: Arm | None) -> int:
        given: Any = None if arm is None else arm.interventions
        whole = True
        if arm is None or callable(given):
            whole = self._draw((), "" if arm is None else "plain")
        if arm is not None and whole:
            made = given(self._traces) if callable(given) else given
            title = f"{', '.join(type(one).__name__ for one in made)} (arm {arm.name!r})"
            if self._traces:
                print()
                title += ", thresholds of the plain response"
            whole = self._draw(made, title)
        self._say_where_they_part()
        if self._options.out is not None and self._traces:
            from tl_l2norm.core.storage import save_traces

            print(f"traces: {save_traces(self._options.out, self._traces)}")
        if self._options.page is not None and self._traces:
            from tl_l2norm.show.explorer import explorer

            page = explorer(self._traces, layer=self._options.layer, events=self._events)
            print(f"page: {page.save(self._options.page)}")
        return 0 if whole else 130

    def _draw(self, interventions: Intervention | Sequence[Intervention], title: str) -> bool:
        """Draw a response and keep its trace; False if it was interrupted."""
        from tl_l2norm.recording.token_stream import stream
        from tl_l2norm.show.following import RunningScale
        from tl_l2norm.show.live import watch
        from tl_l2norm.show.terminal import TerminalView

        options = self._options
        tokens = stream(
            self._model,
            self._asked,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=options.stop,
            seed=options.seed,
            sink_ratio=options.sink_ratio,
            interventions=interventions,
            labels={"arm": title} if title else None,
        )
        first, self._scale = self._scale is None, self._scale or RunningScale()
        whole = watch(tokens, TerminalView(), layer=options.layer, scale=self._scale, title=title, prompt=first)
        if (trace := tokens.trace) is not None:
            if interventions:
                self._events = tokens.events().assign(sequence=len(self._traces))
            self._traces.append(trace)
        return whole

    def _say_where_they_part(self) -> None:
        if len(self._traces) < 2:
            return
        from tl_l2norm.show.shown import common_start

        one, other = (trace.tokens[trace.prompt_len :].tolist() for trace in self._traces)
        print(f"the same tokens as without: the first {common_start(one, other)} of {len(other)}")


def _prompt(options: argparse.Namespace) -> str:
    if options.prompt is None and sys.stdin.isatty():
        raise InputError('say what to ask: tl-l2norm live "How much is 7 times 8?"')
    try:
        prompt: str = sys.stdin.read() if options.prompt is None else options.prompt
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt on standard input isn't {error.encoding}: give it in UTF-8, under PYTHONIOENCODING=utf-8 if need be"
        ) from error
    if not prompt.strip():
        raise InputError("the prompt is empty")
    return prompt


def _arm(options: argparse.Namespace) -> Arm | None:
    """The arm that is asked for; None for the model as it is."""
    from tl_l2norm.experiments.arms_file import load_arms
    from tl_l2norm.tasks.problems import unknown

    file, name = next((own for flag, own in _FLAGS.items() if getattr(options, flag)), (options.arms, options.arm))
    if file is None:
        if name is not None:
            raise InputError("--arm names an arm of a file: give --arms too, such as --arms alrr")
        return None
    arms = load_arms(file)
    able = {arm.name: arm for arm in arms if arm.interventions and arm.match is None}
    if not able:
        raise InputError(f"no arm of {file} intervenes by itself: live draws neither a selection nor an arm that is matched")
    if name is not None and name not in able:
        raise InputError(unknown("arm that intervenes by itself", name, able))
    return able[name] if name is not None else next(iter(able.values()))


def _asked(model: Any, prompt: str, mode: str | None) -> Any:
    """The prompt as the model reads it."""
    from tl_l2norm.text.prompts import chat_prompt

    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    if mode == "plain" or (mode is None and not has_template):
        return prompt
    return chat_prompt(model.tokenizer, prompt, mode="direct" if mode == "direct" else "think")
