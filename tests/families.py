"""Chat templates of the structure of real ones, and how their models write a response, on SmolLM2's vocabulary.

Each was written after the template that its family publishes: same headers, switches, tags and order; tools and the like left out.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple


class Family(NamedTuple):
    name: str
    template: str
    special: tuple[str, ...]
    """Tags and headers that are special tokens."""
    words: tuple[str, ...]
    """Tags that are ordinary tokens of the vocabulary; others are spelled in several."""
    think_ends: str
    """How the prompt of thinking mode ends."""
    direct_ends: str
    control: str
    """What switches thinking off."""
    response: str
    """As the model writes it in thinking mode, after the prompt; WORK is thought, 42 is the answer."""


def _chatml(after: str) -> str:
    """ChatML, with the beginning of an assistant's turn."""
    turns = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    return f"{turns}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{after}{{% endif %}}"


_OFF = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
_LAST = "<|im_start|>assistant\n"
_FORCED = "The answer is"
THINK = ("<think>", "</think>")

FAMILIES = [
    Family(
        "qwen3",
        _chatml(_OFF),
        (),
        THINK,
        _LAST,
        f"{_LAST}<think>\n\n</think>\n\n",
        "enable_thinking=False",
        "<think>\nWORK\n</think>\n\n42",
    ),
    Family(
        "qwen3-thinking",
        _chatml("{{ '<think>\n' }}"),
        (),
        THINK,
        f"{_LAST}<think>\n",
        f"{_LAST}<think>\n\n</think>\n\n{_FORCED}",
        "instruction, empty thought",
        "WORK\n</think>\n\n42",
    ),
    Family(
        "exaone4",
        _chatml("{% if enable_thinking %}{{ '<think>\n' }}{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"),
        (),
        THINK,
        f"{_LAST}<think>\n",
        f"{_LAST}<think>\n\n</think>\n\n",
        "enable_thinking=False",
        "WORK\n</think>\n\n42",
    ),
    Family(
        "r1",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        THINK,
        "<｜Assistant｜><think>\n",
        f"<｜Assistant｜><think>\n\n</think>\n\n{_FORCED}",
        "instruction, empty thought",
        "WORK</think>42",
    ),
    Family(
        "deepseek-v3.1",
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜></think>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}",
        ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        THINK,
        "<｜Assistant｜><think>",
        "<｜Assistant｜></think>",
        "thinking=False",
        "WORK</think>42",
    ),
    Family(
        "glm-4.6",
        "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
        "{{ '/nothink' if (enable_thinking is defined and not enable_thinking) else '' }}{% else %}<|assistant|>\n<think></think>\n{{ m.content }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{{ '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}{% endif %}",
        ("<|user|>", "<|assistant|>"),
        THINK,
        "<|assistant|>",
        "/nothink<|assistant|>\n<think></think>",
        "enable_thinking=False",
        "\n<think>WORK</think>\n42",
    ),
    Family(
        "granite-3.3",
        "{% if thinking %}{{ '<|start_of_role|>system<|end_of_role|>Write your thoughts between <think></think> and your response between "
        "<response></response>.<|end_of_text|>\n' }}{% endif %}{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + "
        "m.content + '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        (),  # its tags are text
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|start_of_role|>assistant<|end_of_role|>",
        "thinking=False",
        "<think>WORK</think><response>42</response>",
    ),
    Family(
        "smollm3",
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ '<|im_start|>system\nReasoning Mode: ' + ('/think' if "
        "enable_thinking else '/no_think') + '<|im_end|>\n' }}"
        + _chatml("{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}"),
        (),
        THINK,
        _LAST,
        f"{_LAST}<think>\n\n</think>\n",
        "enable_thinking=False",
        "<think>\nWORK</think>\n42",
    ),
    Family(
        "nemotron-nano-v2",
        "{% set ns = namespace(on=true, system='') %}{% for m in messages %}{% if '/no_think' in m.content %}{% set ns.on = false %}{% endif %}"
        "{% endfor %}{{ '<SPECIAL_10>System\n\n' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<SPECIAL_11>User\n' + "
        "m.content.replace('/think', '').replace('/no_think', '').strip() + '\n' }}{% elif m.role == 'assistant' %}{{ '<SPECIAL_11>Assistant\n' + "
        "m.content + '\n<SPECIAL_12>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<SPECIAL_11>Assistant\n' }}{% if ns.on %}"
        "{{ '<think>\n\n' }}{% else %}{{ '<think></think>' }}{% endif %}{% endif %}",
        ("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
        THINK,
        "<SPECIAL_11>Assistant\n<think>\n\n",
        "<SPECIAL_11>Assistant\n<think></think>",
        "/no_think",
        "WORK\n</think>\n\n42",
    ),
    Family(
        "magistral",
        "{{ bos_token + '[SYSTEM_PROMPT]First draft your thinking: [THINK]your thoughts[/THINK], then answer.[/SYSTEM_PROMPT]' }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        (),
        "[/INST]",
        f"[/INST][THINK][/THINK]{_FORCED}",
        "instruction, empty thought",
        "[THINK]WORK[/THINK]42",
    ),
    Family(
        "command",
        "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write <|START_THINKING|> first, close it with <|END_THINKING|>.<|END_OF_TURN_TOKEN|>' }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}{% else %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}{% endif %}"
        "{% endfor %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}",
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        (),
        "<|CHATBOT_TOKEN|>",
        f"<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|><|START_RESPONSE|>{_FORCED}",
        "instruction, empty thought",
        "<|START_THINKING|>WORK<|END_THINKING|><|START_RESPONSE|>42<|END_RESPONSE|>",
    ),
    Family(
        "seed-oss",
        "{% if not thinking_budget is defined %}{% set thinking_budget = -1 %}{% endif %}{% for m in messages %}{{ '<seed:bos>' + m.role + '\n' + "
        "m.content + '<seed:eos>' }}{% endfor %}{% if add_generation_prompt %}{{ '<seed:bos>assistant\n' }}{% if thinking_budget == 0 %}"
        "{{ '<seed:think><seed:cot_budget_reflect>' }}{% endif %}{% endif %}",
        ("<seed:bos>", "<seed:eos>"),
        ("<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>"),
        "<seed:bos>assistant\n",
        "<seed:think><seed:cot_budget_reflect>\n</seed:think>\n",
        "thinking_budget=0",
        "<seed:think>WORK</seed:think>42",
    ),
    Family(
        "gpt-oss",
        "{{ '<|start|>system<|message|>Reasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + '<|end|>' }}{% for m in "
        "messages %}{% if m.role == 'assistant' %}{% if m.thinking is defined and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + "
        "m.thinking + '<|end|>' }}{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
        "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        (),
        "<|start|>assistant",
        f"<|start|>assistant<|channel|>final<|message|>{_FORCED}",
        "instruction, empty thought",
        "<|channel|>analysis<|message|>WORK<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
    ),
    Family(
        "gemma4",
        "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}{{ '<|turn>system\n<|think|><turn|>\n' }}{% endif %}{% for m in messages %}"
        "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|turn>model\n' }}{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        ("<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"),
        (),
        "<|turn>model\n",
        "<|turn>model\n<|channel>thought\n<channel|>",
        "enable_thinking=False",
        "<|channel>thought\nWORK<channel|>42<turn|>",
    ),
    Family(
        "apertus",
        "{{ '<|developer_start|>Deliberation: ' + ('enabled' if enable_thinking is defined and enable_thinking else 'disabled') + '<|developer_end|>' }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user_start|>' + m.content + '<|user_end|>' }}{% else %}{{ '<|assistant_start|>' + "
        "m.content + '<|assistant_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}",
        (
            "<|developer_start|>",
            "<|developer_end|>",
            "<|user_start|>",
            "<|user_end|>",
            "<|assistant_start|>",
            "<|assistant_end|>",
            "<|inner_prefix|>",
            "<|inner_suffix|>",
        ),
        (),
        "<|assistant_start|>",
        "disabled<|developer_end|><|user_start|>What is 17 + 25?<|user_end|><|assistant_start|>",
        "enable_thinking=False",
        "<|inner_prefix|>WORK<|inner_suffix|>42<|assistant_end|>",
    ),
    Family(
        "apriel",
        "{{ '<|system|>\nPresent your reasoning step by step, then: [BEGIN FINAL RESPONSE] ... [END FINAL RESPONSE].\n<|end|>\n' }}{% for m in messages %}"
        "{{ '<|' + m.role + '|>\n' + m.content + '\n<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\nHere are my reasoning steps:\n' }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        (),
        "<|assistant|>\nHere are my reasoning steps:\n",
        f"<|assistant|>\nHere are my reasoning steps:\n[BEGIN FINAL RESPONSE]\n{_FORCED}",
        "instruction, empty thought",
        "WORK\n[BEGIN FINAL RESPONSE]\n42",
    ),
]
"""Families that think."""

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)


@functools.cache
def tokenizer_of(family: Family, base: Any) -> Any:
    """A vocabulary in which the family's tags are what they are in its own; whoever changes it takes a copy."""
    tokenizer = copy.deepcopy(base)
    tokenizer.add_special_tokens({"extra_special_tokens": list(family.special)})
    tokenizer.add_tokens(list(family.words))
    tokenizer.chat_template = family.template
    return tokenizer
