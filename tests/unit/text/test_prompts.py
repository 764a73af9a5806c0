"""Prompts of the real SmolLM2 tokenizer, under its own chat template and under those of other models' kind."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tl_l2norm.text.prompts import chat_prompt, is_direct, share_not_direct

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = "{{ '<|im_start|>assistant\n' }}"  # in quotes: Jinja drops a newline at the end of a template

QWEN3 = CHATML + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
SMOLLM3 = (  # sets its own switch, and has a tag that only transformers' Jinja knows
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{% generation %}{% endgeneration %}"
    "<|im_start|>system\nReasoning: {{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    f"{CHATML}{ASSISTANT}"
)
DEEPSEEK_V31 = CHATML + "{{ '<think>' if thinking is defined and thinking else '</think>' }}"
R1 = CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
# The name occurs, but only for turns that a first question does not have.
HISTORY_ONLY = CHATML + (
    "{% for m in messages %}{% if m.role == 'assistant' and enable_thinking %}x{% endif %}{% endfor %}" + ASSISTANT
)
WITH_BOS = "{{ bos_token }}" + CHATML + ASSISTANT

QUESTION = "What is 17 + 25?"
USER = f"<|im_start|>user\n{QUESTION}<|im_end|>\n"


def with_template(tokenizer: Any, template: Any) -> Any:
    twin = copy.deepcopy(tokenizer)
    twin.chat_template = template
    return twin


# The template that SmolLM2 has: no switch


def test_without_a_switch_an_instruction_is_added(smollm2_tokenizer: Any) -> None:
    prompt = chat_prompt(smollm2_tokenizer, QUESTION)
    asked = f"{QUESTION}\nThink step by step, then give the final answer after 'The answer is'."
    assert f"<|im_start|>user\n{asked}<|im_end|>\n" in prompt.text
    assert prompt.text.endswith("<|im_start|>assistant\n")
    assert (prompt.mode, prompt.question, prompt.answer_prefix) == ("think", QUESTION, "")


def test_without_a_switch_a_direct_answer_has_its_beginning_forced(smollm2_tokenizer: Any) -> None:
    prompt = chat_prompt(smollm2_tokenizer, QUESTION, mode="direct")
    asked = f"{QUESTION}\nAnswer at once, without any explanation."
    assert f"<|im_start|>user\n{asked}<|im_end|>\n" in prompt.text
    assert prompt.text.endswith("<|im_start|>assistant\nThe answer is")
    assert (prompt.mode, prompt.answer_prefix) == ("direct", "The answer is")


@pytest.mark.parametrize("mode", ["think", "direct"])
@pytest.mark.parametrize("template", [None, WITH_BOS])
def test_tokens_are_those_of_the_text_and_nothing_more(smollm2_tokenizer: Any, mode: Any, template: str | None) -> None:
    tokenizer = with_template(smollm2_tokenizer, template) if template else smollm2_tokenizer
    prompt = chat_prompt(tokenizer, QUESTION, mode=mode)
    assert tokenizer.decode(prompt.tokens) == prompt.text
    assert prompt.tokens.count(tokenizer.bos_token_id) == prompt.text.count(tokenizer.bos_token)


def test_a_tokenizer_that_adds_bos_adds_none_to_a_rendered_template(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, WITH_BOS)
    bos = [(tokenizer.bos_token, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0][0]} $A", special_tokens=bos)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(chat_prompt(tokenizer, QUESTION).tokens) == chat_prompt(tokenizer, QUESTION).text


def test_system_message(smollm2_tokenizer: Any) -> None:
    assert "<|im_start|>system\nBe brief.<|im_end|>\n" in chat_prompt(smollm2_tokenizer, QUESTION, system="Be brief.").text
    assert "named SmolLM" in chat_prompt(smollm2_tokenizer, QUESTION).text


# Templates with a switch


@pytest.mark.parametrize(
    ("template", "think", "direct"),
    [
        (QWEN3, USER + "<|im_start|>assistant\n", USER + "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (DEEPSEEK_V31, USER + "<think>", USER + "</think>"),
        (
            SMOLLM3,
            f"<|im_start|>system\nReasoning: /think<|im_end|>\n{USER}<|im_start|>assistant\n",
            f"<|im_start|>system\nReasoning: /no_think<|im_end|>\n{USER}<|im_start|>assistant\n",
        ),
    ],
    ids=["qwen3", "deepseek-v3.1", "smollm3"],
)
def test_a_switch_is_used_and_nothing_is_added(smollm2_tokenizer: Any, template: str, think: str, direct: str) -> None:
    tokenizer = with_template(smollm2_tokenizer, template)
    assert chat_prompt(tokenizer, QUESTION).text == think
    prompt = chat_prompt(tokenizer, QUESTION, mode="direct")
    assert (prompt.text, prompt.answer_prefix) == (direct, "")


def test_a_switch_that_changes_nothing_is_no_switch(smollm2_tokenizer: Any) -> None:
    with pytest.warns(UserWarning, match="speaks of thinking"):
        prompt = chat_prompt(with_template(smollm2_tokenizer, HISTORY_ONLY), QUESTION, mode="direct")
    assert prompt.text.endswith("<|im_start|>assistant\nThe answer is")


def test_a_thought_that_the_template_opens_is_closed_in_direct_mode(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, R1)
    assert chat_prompt(tokenizer, QUESTION).text.endswith("<|im_start|>assistant\n<think>\n")
    direct = chat_prompt(tokenizer, QUESTION, mode="direct").text
    assert direct.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer is")


def test_named_templates(smollm2_tokenizer: Any) -> None:
    tokenizer = with_template(smollm2_tokenizer, {"default": QWEN3, "tool_use": "x"})
    assert chat_prompt(tokenizer, QUESTION, mode="direct").text.endswith("</think>\n\n")
    with pytest.raises(ValueError, match="multiple chat templates"):
        chat_prompt(with_template(smollm2_tokenizer, {"a": "x", "b": "y"}), QUESTION)


# Wrong requests


def test_without_a_template_the_error_says_what_to_do(smollm2_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"no chat template: set `tokenizer\.chat_template`.*l2\.generate\(model, \["):
        chat_prompt(with_template(smollm2_tokenizer, None), QUESTION)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(smollm2_tokenizer: Any, question: str) -> None:
    with pytest.raises(ValueError, match="question is empty"):
        chat_prompt(smollm2_tokenizer, question)


@pytest.mark.parametrize("question", [[{"role": "user", "content": "2 + 2?"}], {"question": "2 + 2?"}, None, 5, ["2 + 2?"]])
def test_what_is_no_text_is_refused(smollm2_tokenizer: Any, question: Any) -> None:
    unchecked: Any = inspect.unwrap(chat_prompt)
    with pytest.raises(TypeError, match="question is a text"):
        unchecked(smollm2_tokenizer, question)
    with pytest.raises(TypeError, match="Hugging Face tokenizer"):
        unchecked(object(), "2 + 2?")


def test_an_unknown_mode_is_refused(smollm2_tokenizer: Any) -> None:
    unchecked: Any = inspect.unwrap(chat_prompt)  # what a user calls: the type checker of the tests is in the way
    with pytest.raises(ValueError, match="mode is 'think' or 'direct', not 'fast'"):
        unchecked(smollm2_tokenizer, QUESTION, mode="fast")


# Direct answers


@pytest.mark.parametrize(
    "response",
    [
        " 42.",
        "42",
        "The answer is 42.",
        "-3.5\n",
        "<think>\n\n</think>\n\n42",
        "true",
        "Ben has the most points.",
        "The first box, stepwise.",
        "",
    ],
)
def test_direct(response: str) -> None:
    assert is_direct(response)


@pytest.mark.parametrize(
    "response",
    [
        "<think>17 and 25</think>42",
        "<think> 42",
        "let me see</think>42",
        "[THINK]x[/THINK]42",
        "42.\n\nHere is how.",
        "17 + 25 = 42",
        "6*7",
        "42, because it is.",
        "42. Step 1: look.",
        "42. First, look.",
        "Let's see: 42",
        "So, therefore: 42",
        " ".join(["word"] * 13),
    ],
)
def test_not_direct(response: str) -> None:
    assert not is_direct(response)


def test_number_of_words() -> None:
    assert is_direct("a b c", max_words=3) and not is_direct("a b c d", max_words=3)


def test_share_not_direct() -> None:
    assert share_not_direct(["42", "6 * 7", "true", "no, because"]) == 0.5
    assert share_not_direct(iter(["a b", "a"]), max_words=1) == 0.5
    with pytest.raises(ValueError, match="no responses"):
        share_not_direct([])


@pytest.mark.parametrize(
    "working",
    [
        "因为17乘以20等于340，17乘以3等于51，所以把它们加起来，答案是391。",
        "17に20をかけると340、17に3をかけると51、合わせて391です。",
        "17 times 20 is 340 plus 51 makes 391",
        "17\\cdot 23 = 391",
        "Hence 391, as 340 and 51 sum up",
        "17 mal 23 ist 391",
        "Porque 17 veces 23 son 391",
    ],
)
def test_working_in_other_words_and_scripts_is_not_direct(working: str) -> None:
    assert not is_direct(working)


@pytest.mark.parametrize(
    "answer", ["391", "The answer is 391.", "答案是391。", "答えは391です。", "Die Antwort ist 391.", "(3, 4, 5)", "3:45 pm"]
)
def test_an_answer_in_any_script_is_direct(answer: str) -> None:
    assert is_direct(answer)
