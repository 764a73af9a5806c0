"""Chat templates of the structure that model families ship, each with its special tokens: what decides where a turn ends."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast


class Family(NamedTuple):
    template: str
    eos: str
    others: tuple[str, ...] = ()
    """Special tokens beside eos."""
    ends: tuple[str, ...] = ()
    """Where a turn ends by the template, eos left out."""


_HEADERS = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>[NL]{{ m['content'] }}<|end|>[NL]{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>[NL]{% else %}{{ eos_token }}{% endif %}"
)
_HARMONY = """{%- for m in messages %}
{%- if m['role'] == 'user' %}{{- '<|start|>user<|message|>' + m['content'] + '<|end|>' }}
{%- else %}
{%- if m['thinking'] and loop.last %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m['thinking'] + '<|end|>' }}{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m['content'] + ('[CLOSER]' if loop.last else '<|end|>') }}
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
_GEMMA = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
_COMMAND = (
    "{% for m in messages %}<|START_OF_TURN_TOKEN|>{% if m['role'] == 'user' %}<|USER_TOKEN|>{{ m['content'] }}{% else %}"
    "<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m['content'] }}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
)
_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)
_SHARED = (  # one token ends the thought and, in earlier turns, the answer
    "{% for m in messages %}<|start|>{{ m['role'] }}:"
    "{% if m['reasoning_content'] %}{{ m['reasoning_content'] }}<|stop|>{% endif %}{{ m['content'] }}<|stop|>{% endfor %}"
)

FAMILIES = {
    "llama 3": Family(
        "{{ bos_token }}{% for m in messages %}" + _HEADERS + "<|eot_id|>{% endfor %}",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>",),
    ),
    "gemma": Family(_GEMMA, "<eos>", ("<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>",)),
    "chatml on a base eos": Family(_CHATML, "<|endoftext|>", ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",)),
    "chatml": Family(_CHATML, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "phi 3": Family(_PHI.replace("[NL]", "\n"), "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|end|>"), ("<|end|>",)),
    "phi 4 mini": Family(_PHI.replace("[NL]", ""), "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|end|>"), ("<|end|>",)),
    "gpt-oss": Family(
        _HARMONY.replace("[CLOSER]", "<|return|>"),
        "<|return|>",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
        ("<|call|>",),
    ),
    "harmony that never says return": Family(
        _HARMONY.replace("[CLOSER]", "<|end|>"),
        "<|endoftext|>",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"),
        ("<|call|>", "<|return|>"),
    ),
    "a closer that ends the thought too": Family(_SHARED, "<|endoftext|>", ("<|start|>", "<|stop|>")),
    "command": Family(
        _COMMAND,
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "mistral": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}"
        "{{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ("[INST]", "[/INST]"),
    ),
    "glm, which closes nothing": Family(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}",
        "<|endoftext|>",
        ("<|user|>", "<|assistant|>"),
        ("<|user|>",),
    ),
    "content in parts": Family(_PARTS, "<|endoftext|>", ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",)),
    "plain words": Family("{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}", "</s>"),
    "no place for an answer": Family(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('questions only') }}{% endif %}"
        "{{ m['content'] }}<|im_end|>{% endfor %}",
        "</s>",
        ("<|im_end|>",),
    ),
}


def tokenizer_of(name: str) -> Any:
    """A tokenizer of single bytes, with a family's special tokens and template."""
    family = FAMILIES[name]
    byte_level = Tokenizer(BPE({token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}, []))
    byte_level.pre_tokenizer, byte_level.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, eos_token=family.eos, pad_token=family.eos, extra_special_tokens=list(family.others)
    )
    tokenizer.chat_template = family.template
    return tokenizer
