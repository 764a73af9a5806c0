"""Every message of a chat is in what the model reads, or the chat is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import tl_l2norm as l2
from tests import chat_templates, families, models
from tl_l2norm.core.protocols import Message
from tl_l2norm.text.chat_template import render
from tl_l2norm.text.sequences import decode, tokenize

SYSTEM, ASKED, SAID, TOOL, AGAIN = "Be as a pirate.", "Where are you?", "On the sea.", "Water: 71%", "And in winter?"


class Reader:
    """What tokens are for, without a model."""

    n_ctx, d_vocab = 10_000, 100_000

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(models.tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


def split(tokenizer: Any, messages: list[Message], **options: Any) -> tuple[str, str]:
    """Prompt and response."""
    one = tokenize(Reader(tokenizer), messages, **options)[0]
    return decode(tokenizer, one.tokens[: one.prompt_len]), decode(tokenizer, one.tokens[one.prompt_len :])


# Nothing is lost

ONLY_USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}"
LAST_ONE = "{% for m in messages %}{% if loop.last %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}assistant:"
NO_TOOLS = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}assistant:"
NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
CUT = "{% for m in messages %}{{ m.role }}: {{ m.content[:20] }}\n{% endfor %}assistant:"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        (ONLY_USERS, chat(("system", SYSTEM), ("user", ASKED)), "the system says .message 0, 'Be as"),
        (ONLY_USERS, chat(("system", "Where"), ("user", ASKED)), "the system says"),  # what it says stands elsewhere too
        (LAST_ONE, chat(("user", ASKED), ("assistant", SAID), ("user", AGAIN)), "the user says .message 0"),
        (LAST_ONE, chat(("user", ASKED), ("assistant", SAID), ("user", ASKED)), "the user says .message 0"),  # said twice
        (NO_TOOLS, chat(("user", ASKED), ("assistant", SAID), ("tool", TOOL)), "the tool says .message 2, 'Water"),
        (CUT, chat(("user", f"{ASKED} Say it in one word.")), "the user says"),
    ],
)
def test_a_message_that_the_template_leaves_out_is_named(template: str, messages: list[Message], lost: str) -> None:
    with pytest.raises(ValueError, match=f"leaves out what {lost}"):
        tokenize(Reader(with_template(template)), messages, continues=True)


def test_a_system_message_that_the_template_leaves_out_is_named() -> None:
    with pytest.raises(ValueError, match="leaves out what the system says"):
        l2.chat_prompt(with_template(ONLY_USERS), ASKED, system=SYSTEM)
    assert ASKED in l2.chat_prompt(with_template(ONLY_USERS), ASKED).text


def test_a_call_of_a_tool_that_the_template_leaves_out_is_named() -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "how_wet", "arguments": {"where": "here"}}}],
    }
    messages = [*chat(("user", ASKED)), call, *chat(("tool", TOOL))]
    with pytest.raises(ValueError, match=r"leaves out what the assistant says .*how_wet"):
        tokenize(Reader(with_template(PLAIN)), messages)
    calls = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}A:"
    assert "how_wet" in split(with_template(calls), messages)[0]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("m.content | e", "a &lt; b &amp; &#34;c&#34;"),
        ("m.content | tojson", r"a < b & \"c\""),
        ("m.content | upper", 'A < B & "C"'),
        ("m.content | trim | replace('/no_think', '')", 'a < b & "c"'),
    ],
)
def test_what_the_template_writes_in_another_way_is_not_left_out(printed: str, expected: str) -> None:
    tokenizer = with_template(f"{{% for m in messages %}}{{{{ m.role }}}}: {{{{ {printed} }}}}\n{{% endfor %}}assistant:")
    messages = chat(("system", f"/no_think {SYSTEM}"), ("user", 'a < b & "c"\n'), ("assistant", SAID), ("user", AGAIN))
    assert expected in render(tokenizer, messages)


def test_the_reason_is_the_first_try_s() -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.content.split('?')[0] }}\n{% endfor %}assistant:")
    with pytest.raises(ValueError, match="leaves out what the user says"):
        render(tokenizer, chat(("user", ASKED)))


def test_parts_go_where_text_is_not_read() -> None:
    mixed = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    messages = chat(("system", SYSTEM), ("user", ASKED), ("assistant", SAID), ("user", AGAIN))
    assert render(with_template(mixed), messages) == f"{SYSTEM}{ASKED}{SAID}{AGAIN}"


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_every_family_takes_a_chat_of_several_turns(family: families.Family) -> None:
    tokenizer = families.tokenizer_of(family, models.tokenizer())
    prompt, _ = split(tokenizer, chat(("user", ASKED), ("assistant", f"<think>{TOOL}</think>{SAID}"), ("user", AGAIN)))
    assert ASKED in prompt and SAID in prompt and AGAIN in prompt
    prompt, response = split(tokenizer, chat(("user", ASKED), ("assistant", SAID)))
    assert ASKED in prompt and SAID in response
    assert split(tokenizer, chat(("user", ASKED), ("assistant", SAID)), continues=True)[0].endswith(SAID)


@pytest.mark.parametrize("name", [name for name in chat_templates.FAMILIES if name != "no place for an answer"])
def test_every_structure_takes_a_chat_of_several_turns(name: str) -> None:
    tokenizer = chat_templates.tokenizer_of(name)
    prompt, _ = split(tokenizer, chat(("user", ASKED), ("assistant", SAID), ("user", AGAIN)))
    assert ASKED in prompt and SAID in prompt and AGAIN in prompt
    prompt, response = split(tokenizer, chat(("user", ASKED), ("assistant", SAID)))
    assert ASKED in prompt and SAID in response


# A chat that is continued

THINKS = (
    "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("content", ["", " ", "12", "12 "])
@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_a_thought_is_continued_or_refused(name: str, content: str) -> None:
    messages = [*chat(("user", ASKED)), {"role": "assistant", "content": content, name: "abc"}]
    with pytest.raises(ValueError, match=r"leaves out what the last assistant's message thinks \('abc'\)"):
        tokenize(Reader(with_template(PLAIN)), messages, continues=True)
    if name == "reasoning_content":
        prompt, response = split(with_template(THINKS), messages, continues=True)
        assert prompt + response == f"user: {ASKED}\nassistant: <think>abc</think>{content.lstrip()}"


def test_a_chat_that_loses_its_system_message_is_not_continued() -> None:
    with pytest.raises(ValueError, match=r"^sequence 0: the chat template leaves out what the system says"):
        tokenize(
            Reader(with_template(NO_SYSTEM)), chat(("system", SYSTEM), ("user", ASKED), ("assistant", "1")), continues=True
        )


def test_a_call_of_a_tool_is_not_continued() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "how_wet", "arguments": {}}}]}
    with pytest.raises(ValueError, match="calls a tool, which ends its turn"):
        tokenize(Reader(with_template(PLAIN)), [*chat(("user", ASKED)), call], continues=True)


def test_an_empty_message_is_one_that_begins() -> None:
    prompt, _ = split(with_template(THINKS), chat(("user", ASKED), ("assistant", "")), continues=True)
    assert prompt == f"user: {ASKED}\nassistant: "


def test_a_message_may_have_several_thoughts() -> None:
    magistral = next(family for family in families.FAMILIES if family.name == "magistral")
    tokenizer = families.tokenizer_of(magistral, models.tokenizer())
    said = "[THINK]z[/THINK]use [/INST] here [THINK]b[/THINK] 14"
    prompt, response = split(tokenizer, chat(("user", ASKED), ("assistant", said)))
    assert ASKED in prompt and response.startswith(said)


# Where a response begins


@pytest.mark.parametrize(
    "template",
    [
        PLAIN + "{% if add_generation_prompt %}{{ 'assistant:  ' }}{% endif %}",
        PLAIN + "{% if add_generation_prompt %}{{ ' ANSWER:' }}{% endif %}",
        "{{ messages | length }} messages\n" + PLAIN + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        "{{ add_generation_prompt }}\n" + PLAIN,
    ],
)
@pytest.mark.parametrize("said", ["12", "Apples, I think.", "Zero.", "<think>ten and two</think>12"])
def test_a_response_begins_where_the_last_message_does(template: str, said: str) -> None:
    prompt, response = split(with_template(template), chat(("user", ASKED), ("assistant", said)))
    assert prompt.rstrip().endswith(f"{ASKED}\nassistant:") and response.strip() == said


def test_a_place_that_is_not_found_has_to_be_said() -> None:
    tokenizer = with_template("{{ messages[-1].content }}, that is:\n{{ add_generation_prompt }}\n" + PLAIN)
    messages = chat(("user", ASKED), ("assistant", "12"))
    with pytest.raises(ValueError, match=r"doesn't show where .* prompt_lens=.*segments="):
        tokenize(Reader(tokenizer), messages)
    assert tokenize(Reader(tokenizer), messages, prompt_lens=[5])[0].prompt_len == 5


@pytest.mark.parametrize("role", ["model", "Assistant", "gpt", 5, None])
def test_another_name_for_the_assistant_is_refused(role: Any) -> None:
    with pytest.raises(ValueError, match=r"message 1 has the role .*'assistant'"):
        tokenize(Reader(models.tokenizer()), [*chat(("user", ASKED)), {"role": role, "content": SAID}])


def test_an_assistant_s_message_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no prompt: begin it with what the user says"):
        tokenize(Reader(models.tokenizer()), chat(("assistant", SAID)))


# Half characters


@pytest.mark.parametrize("half", ["\ud800", "at the end \udfff", "\udc3a\ud83d turned round"])
def test_half_a_character_is_refused(half: str) -> None:
    for given in (half, f"What? {half}", chat(("user", half)), chat(("system", half), ("user", ASKED))):
        with pytest.raises(ValueError, match="holds a lone surrogate"):
            tokenize(Reader(models.tokenizer()), given, continues=True)
    with pytest.raises(ValueError, match="holds a lone surrogate"):
        l2.chat_prompt(models.tokenizer(), half)
