"""What the reader says of responses, against what was written into them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import AddedToken

from tests.families import FAMILIES, LLAMA3, MISTRAL, Family, tokenizer_of
from tl_l2norm.text.boundaries import Boundaries
from tl_l2norm.text.prompts import chat_prompt
from tl_l2norm.text.sequences import token_texts
from tl_l2norm.text.thoughts import read, segments_of

QUESTION = "What is 17 + 25?"
WORK = "17 and 25, is it 32? No, carry one: 42."
P, T, A = "prompt", "think", "answer"


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def tokenizer(family: Family, smollm2_tokenizer: Any) -> Any:
    return tokenizer_of(family, smollm2_tokenizer)


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def response_of(tokenizer: Any, prompt: str, response: str) -> tuple[Any, list[tuple[str, str]]]:
    """The reading, and each of the response's tokens with its segment."""
    start, own = tokens_of(tokenizer, prompt), tokens_of(tokenizer, response)
    tokens = [*start, *own]
    texts = token_texts(tokenizer, tokens)
    reading, segments = Boundaries(tokenizer).read_response(tokens, texts, len(start))
    assert segments[: len(start)] == (P,) * len(start) and len(segments) == len(tokens)
    return reading, list(zip(texts[len(start) :], segments[len(start) :], strict=True))


# Every family


def test_each_family_is_switched_as_its_template_does(family: Family, tokenizer: Any) -> None:
    think, direct = (chat_prompt(tokenizer, QUESTION, mode=mode) for mode in ("think", "direct"))
    assert think.text.endswith(family.think_ends)
    assert direct.text.endswith(family.direct_ends)
    assert direct.control == family.control
    assert direct.prompt_len == len(direct.tokens)


def test_each_family_s_response_is_read(family: Family, tokenizer: Any) -> None:
    prompt = chat_prompt(tokenizer, QUESTION).text
    reading, segments = response_of(tokenizer, prompt, family.response.replace("WORK", WORK))
    assert WORK in reading.thinking
    assert reading.answer.replace("<response>", "").replace("</response>", "").strip() == "42"
    assert WORK not in reading.answer
    thought = "".join(text for text, segment in segments if segment == T)
    rest = "".join(text for text, segment in segments if segment == A)
    assert WORK in thought and "4" not in rest.partition("42")[0] and "42" in rest


def test_a_response_that_is_cut_off_in_its_thought_has_no_answer(family: Family, tokenizer: Any) -> None:
    before = family.response.partition("WORK")[0]
    reading, segments = response_of(tokenizer, chat_prompt(tokenizer, QUESTION).text, f"{before}{WORK}")
    assert WORK in reading.thinking and reading.answer == "" and reading.unclosed is not None
    assert segments[-1][1] == T


def test_a_direct_answer_is_an_answer(family: Family, tokenizer: Any) -> None:
    prompt = chat_prompt(tokenizer, QUESTION, mode="direct")
    reading, segments = response_of(tokenizer, prompt.text, " 42.")
    assert (reading.answer, reading.thinking) == (" 42.", "")
    assert {segment for _, segment in segments} == {A}


def test_a_user_who_names_a_tag_opens_nothing(family: Family, tokenizer: Any) -> None:
    prompt = chat_prompt(tokenizer, "What do <think>, [THINK] and <|START_THINKING|> mean? <thinking>", mode="direct").text
    reading, _ = response_of(tokenizer, prompt, "They open a thought.")
    assert reading.answer == "They open a thought."


def test_a_rendered_chat_begins_its_response_behind_the_prompt(family: Family, tokenizer: Any) -> None:
    prompt = chat_prompt(tokenizer, QUESTION).text
    tokens = tokens_of(tokenizer, prompt + family.response.replace("WORK", WORK))
    start = Boundaries(tokenizer).response_start(tokens, token_texts(tokenizer, tokens))
    assert start is not None
    before = tokenizer.decode(tokens[:start], skip_special_tokens=False)
    assert QUESTION in before and WORK not in before
    assert WORK in tokenizer.decode(tokens[start:])


# Texts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>42", "42"),
        ("a</think>42", "42"),  # the prompt opened it, and nobody says so
        ("<think>a</think>b</think>42", "42"),
        ("<think>a</think>b<think>c</think>42", "42"),
        ("<think>a", ""),
        ("<think>a</think>b<think>c", ""),
        ("42", "42"),
        ("42. The <think> tag opens a thought.", "42. The <think> tag opens a thought."),
        ("42: `<think>` and `</think>` are tags", "42: `<think>` and `</think>` are tags"),
        ("Use <think> and </think>.", "Use <think> and </think>."),
        ("<think>I close with `</think>` and then answer.</think>42", "42"),
        ("<think>so </think> 42", " 42"),
        ("<thinking>not </think> yet</thinking>42", "42"),
        ("Sure.\n<think>a</think>42", "42"),
        ("<|begin_of_thought|>a<|end_of_thought|>42", "42"),
        ("<reasoning>a</reasoning><answer>42</answer>", "<answer>42</answer>"),
        ("[THINK]a[/THINK]42", "42"),
        ("<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>42", "42"),
        ("<|channel|>analysis<|message|>a<|end|>", ""),
        ("", ""),
        (" <think> Perhaps 32. </think> The answer is 42", " The answer is 42"),
        ("<think>\nx\n</think>\n\nThe answer is 42\n</answer></reasoning>", "\n\nThe answer is 42\n</answer></reasoning>"),
        ("Perhaps 42.</think>", ""),
        ("a </think> 12", " 12"),
        ("Perhaps 42 </think>", ""),
        ("so that it is 7 </think> The answer is 12", " The answer is 12"),
        ('He said "7"</think>12', "12"),
        ('seven </think>"12"', '"12"'),
        ("Sure! <think> let me see. The answer is 12", ""),
        ("Sure! <think>... let me see. The answer is 12", ""),
        ('Well, <think>"Seven" The answer is 12', ""),
        ("Okay <thinking> seven </thinking> 12", " 12"),
        ("12. The tag <think> opens a thought.", "12. The tag <think> opens a thought."),
        ("12, with <think> before it", "12, with <think> before it"),
        ("12: a <think> block (<think> opens it)", "12: a <think> block (<think> opens it)"),
        ("12, as in `<think>7</think>`", "12, as in `<think>7</think>`"),
        ("Begin with <think>\nlet me see. The answer is 12", ""),
        ("12, and not <think> again", "12, and not <think> again"),
        ("12. Close it by “</think>”.", "12. Close it by “</think>”."),
    ],
)
def test_answers_of_texts(text: str, answer: str) -> None:
    assert read(text).answer == answer


def test_a_turn_of_several_messages_is_one_response(smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(next(f for f in FAMILIES if f.name == "gpt-oss"), smollm2_tokenizer)
    think, final = "<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
    earlier = f"<|start|>user<|message|>hi<|end|>{final}hello<|end|><|start|>user<|message|>17 + 25?<|end|>"
    tokens = tokens_of(tokenizer, f"{earlier}{think}one<|end|>{think}two<|end|>{final}42<|return|>")
    texts = token_texts(tokenizer, tokens)
    start = Boundaries(tokenizer).response_start(tokens, texts)
    assert "".join(texts[start:]).startswith("<|channel|>analysis<|message|>one")
    reading, _ = Boundaries(tokenizer).read_response(tokens, texts, start)
    assert reading.answer == "42" and "one" in reading.thinking and "two" in reading.thinking


HARMONY_TURNS = {
    "a tool's result": "<|start|>functions.count to=assistant<|channel|>commentary<|message|>of the tool<|end|>",
    "what the user says next": "<|start|>user<|message|>of the user<|end|>",
    "what a developer says": "<|start|>developer<|message|>of the developer<|end|>",
}


@pytest.mark.parametrize("other", HARMONY_TURNS)
@pytest.mark.parametrize("ends", ["analysis<|message|>one<|end|>", "commentary to=functions.count<|message|>{}<|call|>"])
def test_a_turn_ends_where_somebody_else_speaks(smollm2_tokenizer: Any, other: str, ends: str) -> None:
    tokenizer = tokenizer_of(next(f for f in FAMILIES if f.name == "gpt-oss"), smollm2_tokenizer)
    think, final = "<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
    earlier = f"<|start|>user<|message|>17 + 25?<|end|><|start|>assistant<|channel|>{ends}{HARMONY_TURNS[other]}"
    for text, expected in ((f"{earlier}{think}two<|end|>{final}42<|return|>", "two"), (earlier, None)):
        tokens = tokens_of(tokenizer, text)
        texts = token_texts(tokenizer, tokens)
        start = Boundaries(tokenizer).response_start(tokens, texts)
        assert (start is None) == (expected is None)
        if start is not None:
            assert "".join(texts[start:]).startswith(f"<|channel|>analysis<|message|>{expected}")


@pytest.mark.parametrize("name", ["qwen3", "magistral", "r1", "apertus"])
def test_a_chat_that_ends_with_the_user_has_no_response(name: str, smollm2_tokenizer: Any) -> None:
    family = next(f for f in FAMILIES if f.name == name)
    tokenizer = tokenizer_of(family, smollm2_tokenizer)
    response = family.response.replace("WORK", WORK)
    between = Boundaries(tokenizer).next_turn
    for text, begins in ((response, True), (f"{response}{between}And then?", False)):
        tokens = tokens_of(tokenizer, chat_prompt(tokenizer, QUESTION).text + text)
        assert (Boundaries(tokenizer).response_start(tokens, token_texts(tokenizer, tokens)) is not None) == begins


@pytest.mark.parametrize("channels", [("analysis", "analysis"), ("analysis", "commentary"), ("commentary", "analysis")])
@pytest.mark.parametrize("final", ["<|end|><|start|>assistant<|channel|>final<|message|>42", "", "<|end|>"])
def test_a_thought_of_several_messages_is_told_without_their_headers(channels: tuple[str, str], final: str) -> None:
    first, second = (f"<|channel|>{channel}<|message|>" for channel in channels)
    text = f"{first}one<|end|><|start|>assistant{second}two{final}"
    reading = read(text)
    assert (reading.thinking, reading.answer) == ("one\ntwo", "42" if "42" in final else "")
    assert set(segments_of(reading, list(text.partition("42")[0]))) == {T}


def test_what_a_prompt_opened_is_closed_by_its_own_tag() -> None:
    opened = read("<think>").unclosed
    assert read("a [/THINK] b</think>42", opened=opened).answer == "42"
    assert read("a", opened=opened).answer == "" and read("a", opened=opened).thinking == "a"


@pytest.mark.parametrize("text", ['I say "42"</think>"42"', "```x```</think>```42```", "it’s ‘42’</think>‘42’"])
def test_quotations_beside_a_closing_tag_do_not_quote_it(text: str) -> None:
    reading = read(text, opened=read("<think>").unclosed)
    assert "42" in reading.answer and reading.unclosed is None


@pytest.mark.parametrize(
    ("end", "answer", "thinking"),
    [(7, "", ""), (8, "", "a"), (10, "", "a"), (16, "", "a"), (17, "4", "a"), (18, "42", "a")],
)
def test_the_beginning_of_a_reading(end: int, answer: str, thinking: str) -> None:
    whole = read("<think>a</think>42")
    assert (whole.up_to(end).answer, whole.up_to(end).thinking) == (answer, thinking)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<think>", "a", "</think>", "4", "2"], [T, T, T, A, A]),
        (
            ["So", "\n<", "think", ">\n", "a", "</", "think", ">\n\n", "42"],
            [A, T, T, T, T, T, T, T, A],
        ),  # tags of several tokens
        (["<think>", "a", ""], [T, T, T]),  # an unfinished character, cut off
        (["", "<think>", "a", "</think>", "", "4"], [T, T, T, T, A, A]),
        (["a", "b"], [A, A]),
        (["a", "</think>", "b"], [T, T, A]),
    ],
)
def test_segments_of_tokens(texts: list[str], expected: list[str]) -> None:
    assert list(segments_of(read("".join(texts)), texts)) == expected


# Tags that are special tokens


def test_a_special_tag_counts_as_that_token_alone(smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(next(f for f in FAMILIES if f.name == "magistral"), smollm2_tokenizer)
    spelled = [token for part in ("[", "THINK", "]", "42") for token in tokens_of(tokenizer, part)]
    texts = token_texts(tokenizer, spelled)
    assert "".join(texts) == "[THINK]42"
    assert Boundaries(tokenizer).read_tokens(spelled, texts).answer == "[THINK]42"
    real = tokens_of(tokenizer, "[THINK]42")
    assert Boundaries(tokenizer).read_tokens(real, token_texts(tokenizer, real)).answer == ""


def test_special_tokens_that_mark_no_thought_are_left_out_of_the_text(smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(next(f for f in FAMILIES if f.name == "command"), smollm2_tokenizer)
    reading, _ = response_of(
        tokenizer, "hi", "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>42<|END_RESPONSE|><|im_end|>"
    )
    assert reading.text == "<|START_THINKING|>a<|END_THINKING|>42"


def test_a_special_tag_is_never_a_mention(smollm2_tokenizer: Any) -> None:
    tokenizer = tokenizer_of(next(f for f in FAMILIES if f.name == "magistral"), smollm2_tokenizer)
    for response in ("Well [THINK] a [/THINK] 42", 'Well "[THINK]" a `[/THINK]`42', "[THINK]a [/THINK] 42"):
        tokens = tokens_of(tokenizer, response)
        reading = Boundaries(tokenizer).read_tokens(tokens, token_texts(tokenizer, tokens))
        assert "a" in reading.thinking and reading.answer.strip(" `") == "42"


# Odd templates

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
SWALLOWS = (  # the tokens beside the newline swallow it
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' }}"
)
SYSTEM = "Be brief."


def odd(tokenizer: Any, template: str) -> Any:
    swallowed = copy.deepcopy(tokenizer_of(FAMILIES[0]._replace(template=template), tokenizer))
    swallowing = [AddedToken(text, rstrip=True, special=True) for text in ("<|end|>", "<|assistant|>", "<|user|>")]
    swallowed.add_special_tokens({"extra_special_tokens": swallowing})
    return swallowed


@pytest.mark.parametrize("template", [PARTS, NEEDS_SYSTEM, SWALLOWS])
@pytest.mark.parametrize("mode", ["think", "direct"])
def test_what_a_user_says_is_asked_and_opens_nothing(smollm2_tokenizer: Any, template: str, mode: Any) -> None:
    tokenizer = odd(smollm2_tokenizer, template)
    question = "Begin with\n<think>\nand reason. What is 17 + 25?"
    prompt = chat_prompt(tokenizer, question, mode=mode, system=SYSTEM if template == NEEDS_SYSTEM else None)
    assert "What is 17 + 25?" in prompt.text
    reading, segments = response_of(tokenizer, prompt.text, "The answer is 42")
    assert reading.answer == "The answer is 42" and {segment for _, segment in segments} == {A}


def test_a_template_that_refuses_says_what_to_do(smollm2_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"system first.*system=\.\.\."):
        chat_prompt(odd(smollm2_tokenizer, NEEDS_SYSTEM), QUESTION)
    with pytest.raises(ValueError, match="leaves out what the user says"):
        chat_prompt(odd(smollm2_tokenizer, "{% for m in messages %}<|im_start|>{% endfor %}"), QUESTION)


# Templates that say nothing of thinking


@pytest.mark.parametrize(
    ("template", "header"), [(LLAMA3, "<|start_header_id|>assistant<|end_header_id|>"), (MISTRAL, "[/INST]")]
)
def test_headers_of_templates_without_thoughts(smollm2_tokenizer: Any, template: str, header: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[0]._replace(template=template, words=()), smollm2_tokenizer)
    boundaries = Boundaries(tokenizer)
    assert boundaries.header == header and boundaries.thinks() is None and boundaries.answer_opening == ""
    prompt = chat_prompt(tokenizer, QUESTION, mode="direct")
    assert (prompt.control, prompt.answer_prefix) == ("instruction", "The answer is")


def test_no_tokenizer_and_no_template() -> None:
    assert Boundaries(None).header == "" and Boundaries(None).special_ids == frozenset()


def test_a_template_that_speaks_of_thinking_in_an_unknown_way_warns(smollm2_tokenizer: Any) -> None:
    odd = LLAMA3 + "{% if deep_thought %}{% endif %}"
    tokenizer = tokenizer_of(FAMILIES[0]._replace(template=odd, words=()), smollm2_tokenizer)
    with pytest.warns(UserWarning, match="no switch and no tags of it are known"):
        chat_prompt(tokenizer, QUESTION)
