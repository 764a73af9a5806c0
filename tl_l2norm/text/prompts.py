r"""Prompts for the two modes, thinking and direct, and whether a direct answer was direct.

>>> prompt = chat_prompt(model.tokenizer, "mod 10: 3A-2", mode="direct")
>>> prompt.control, prompt.text
('enable_thinking=False', '<|im_start|>user\nmod 10: 3A-2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n')
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.protocols import Message, Tokenizer
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.chat_template import render
from tl_l2norm.text.thoughts import Reading, close, empty_thought, read

Mode = Literal["think", "direct"]


class _Switch(NamedTuple):
    """A variable of chat templates, and what turns thinking on and off."""

    name: str
    on: object
    off: object


_SWITCHES = (
    _Switch("enable_thinking", True, False),  # Qwen3, GLM, SmolLM3, Gemma 4, EXAONE 4, Hunyuan, Ernie, Apertus, ...
    _Switch("thinking", True, False),  # Granite, DeepSeek-V3.1, Hermes 4, Kimi
    _Switch("reasoning", True, False),  # Command A
    _Switch("thinking_budget", -1, 0),  # Seed-OSS
)
_WORDS = ("/think", "/no_think")  # in the system message: Nemotron Nano and Super
_INSTRUCTIONS: dict[Mode, str] = {
    "think": "Think step by step, then give the final answer after 'The answer is'.",
    "direct": "Answer at once, without any explanation.",
}
ANSWER_PREFIX = "The answer is"
"""Forced beginning of a direct answer where a template has no switch."""

_WORKING = re.compile(
    r"""\n
    | \b (?:because|since|therefore|thus|hence|steps?|let's|let\ us|let\ me|denn|weil|porque|luego|parce\ que|donc) \b
    | \bfirst, | 因为|因為|所以|因此|なので|だから|したがって
    | \d \s* (?:[-+*/×÷−]|\\(?:cdot|times|div)\b) \s* \d
    | \d \s* \b(?:times|plus|minus|multiplied|divided|mal|durch|por|más|veces|menos|fois|moins|乘|加|减|除)\b [^\d\n]{0,12} \d
    | \d \s* (?:乘|加|减|減|除|かける|足す|引く|割る) [^\d\n]{0,4} \d""",
    re.IGNORECASE | re.VERBOSE,
)
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Characters of scripts that put no spaces between words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A question as the model reads it, rendered by its chat template."""

    question: str
    mode: Mode
    text: str
    """The exact rendered text, with `answer_prefix` at its end."""
    tokens: tuple[int, ...]
    answer_prefix: str
    """The forced beginning of the answer, "" if there is none: the whole answer is this and the response."""
    control: str
    """What puts the model into this mode: the template's switch, such as "enable_thinking=False", or an "instruction", with an
    "empty thought" where a model that thinks has no switch."""

    @property
    def prompt_len(self) -> int:
        """Number of tokens: all of it is prompt."""
        return len(self.tokens)


def chat_prompt(tokenizer: Tokenizer, question: str, *, mode: Mode = "think", system: str | None = None) -> ChatPrompt:
    """Renders a question so that the model thinks first, or answers directly.

    A template's own switch is used where it has one (docs/families.md lists them). Otherwise an instruction follows the
    question, and a direct answer has its beginning forced ("The answer is"), because small models explain themselves whatever
    they are told. It stands behind a finished header: where the template opens a thought, or the model always thinks, direct
    mode writes an empty thought before it, and a channel is named where messages have one.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        question: What the user asks.
        mode: "think" or "direct".
        system: A system message; None leaves it to the template.

    Raises:
        ValueError: another mode, an empty question, a tokenizer without a chat template, or one that refuses the messages.
        TypeError: a question that is no text, or something else than a tokenizer.

    Warns:
        UserWarning: the template speaks of thinking, but neither a switch nor tags of it are known.

    Examples:
        >>> prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A+5B*3", mode="direct")
        >>> print(prompt.text)
        <|im_start|>user
        mod 10: 7A+5B*3<|im_end|>
        <|im_start|>assistant
        <think>
        <BLANKLINE>
        </think>
        <BLANKLINE>
        <BLANKLINE>
        >>> prompt.control, prompt.prompt_len
        ('enable_thinking=False', 25)
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is 'think' or 'direct', not {mode!r}")
    if not isinstance(question, str):
        raise InputTypeError(
            f"question is a text, got {type(question).__name__}: l2.generate(model, chat) takes chats as they are, and "
            "run_modes(model, problems) problems"
        )
    if not hasattr(tokenizer, "apply_chat_template"):
        raise InputTypeError(f"tokenizer is a Hugging Face tokenizer, such as model.tokenizer, got {type(tokenizer).__name__}")
    if not question.strip():
        raise InputError("the question is empty")
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template: set `tokenizer.chat_template`, "
            'or pass plain text, as in `l2.generate(model, ["plain text ..."])`'
        )
    text, prefix, control = _switched(tokenizer, question, mode, system) or _instructed(tokenizer, question, mode, system)
    text += prefix
    # The template has written BOS already.
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ChatPrompt(question=question, mode=mode, text=text, tokens=tokens, answer_prefix=prefix, control=control)


def _switched(tokenizer: Tokenizer, question: str, mode: Mode, system: str | None) -> tuple[str, str, str] | None:
    """Rendered text, forced beginning and control by the template's own switch; None where it has none.

    What a switch does is seen by flipping it: a name in the template may concern earlier turns only.
    """
    template = str(tokenizer.chat_template)
    for switch in _SWITCHES:
        if switch.name not in template:
            continue
        values = {"think": switch.on, "direct": switch.off}
        texts = {m: _render(tokenizer, question, system, {switch.name: value}) for m, value in values.items()}
        if texts["think"] != texts["direct"]:
            return _closed(tokenizer, texts[mode], mode), "", f"{switch.name}={values[mode]}"
    if _WORDS[1] in template:
        words = dict(zip(get_args(Mode), _WORDS, strict=True))
        texts = {m: _render(tokenizer, question, f"{system or ''} {word}".strip(), {}) for m, word in words.items()}
        if texts["think"].replace(_WORDS[0], "") != texts["direct"].replace(_WORDS[1], ""):
            return _closed(tokenizer, texts[mode], mode), "", words[mode]
    return None


def _closed(tokenizer: Tokenizer, text: str, mode: Mode) -> str:
    """A direct prompt outside of any thought: Seed-OSS opens one whatever its budget."""
    opened = Boundaries(tokenizer).opened(text) if mode == "direct" else None
    return text if opened is None else close(text, opened)


def _instructed(tokenizer: Tokenizer, question: str, mode: Mode, system: str | None) -> tuple[str, str, str]:
    """What `_switched` gives, for a template without a switch."""
    text = _render(tokenizer, f"{question}\n{_INSTRUCTIONS[mode]}", system, {})
    boundaries = Boundaries(tokenizer)
    opened, kind = boundaries.opened(text), boundaries.thinks()
    if opened is None and kind is None and re.search("think|thought|reason", str(tokenizer.chat_template), re.IGNORECASE):
        warnings.warn(
            "the chat template speaks of thinking, but no switch and no tags of it are known here: thinking is asked for by an "
            "instruction alone; look at chat_prompt(...).text, or pass prompts that you rendered yourself",
            stacklevel=4,
        )
    if mode == "think":
        return text, "", "instruction"
    control = "instruction" if opened is None and kind is None else "instruction, empty thought"
    if opened is not None:
        text = close(text, opened)
    elif kind is not None:
        text += empty_thought(kind)
    return text + boundaries.answer_opening, ANSWER_PREFIX, control


def _render(tokenizer: Tokenizer, question: str, system: str | None, switches: dict[str, object]) -> str:
    messages: list[Message] = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return render(tokenizer, messages, prompt=True, variables=switches)


def is_direct(response: str, *, max_words: int = 12) -> bool:
    r"""Whether a response to a direct prompt is an answer and nothing else.

    Empty thoughts and surrounding white space are left out. What remains is direct if nothing was thought before it, and it has
    no line break, at most `max_words` words (two characters of Chinese, Japanese or Korean are one), no arithmetic between two
    numbers ("3 + 4", "3 times 4"), and none of "because", "since", "therefore", "thus", "hence", "step", "let's", "let us",
    "let me", "first," and their like in a few languages. An empty response holds no working: it is direct.

    Examples:
        >>> is_direct("<think>\n\n</think>\n\n42"), is_direct("17 + 25 = 42"), is_direct("<think>17 + 25</think>42")
        (True, False, False)
    """
    return is_direct_reading(read(response), max_words=max_words)


def is_direct_reading(reading: Reading, *, max_words: int = 12) -> bool:
    """`is_direct` of a response that was read together with its prompt."""
    answer = reading.answer.strip()
    thought = reading.unclosed is not None or reading.thinking.strip()
    words = len(_WIDE.sub(" ", answer).split()) + len(_WIDE.findall(answer)) / 2
    return not thought and words <= max_words and not _WORKING.search(answer)


def share_not_direct(responses: Iterable[str], *, max_words: int = 12) -> float:
    """The share of responses that are not direct (`is_direct`)."""
    direct = [is_direct(response, max_words=max_words) for response in responses]
    if not direct:
        raise InputError("no responses: the share of none is not defined")
    return direct.count(False) / len(direct)
