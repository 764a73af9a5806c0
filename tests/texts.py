"""Sequences that laws read, and how far apart numbers are."""

from __future__ import annotations

import re

import torch

from tests import models

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening comes and the stars are out.",
    "Two and two make four.",
    "Hi",
]


def ids(text: str) -> list[int]:
    return models.tokenizer()(text, add_special_tokens=False).input_ids


def relative(values: torch.Tensor, truth: torch.Tensor) -> float:
    """The greatest relative difference; two zeros don't differ."""
    return float(torch.where(values == truth, 0.0, (values - truth).abs() / truth.abs()).max())


QUESTIONS = [
    "What is 2+2?",
    "Name a colour, and say in one long sentence with many words why you like it more than the other ones.",
    "Hi",
    "Is seven larger than three? Think about it.",
    "Tell me a joke about cats.",
]


def prompts() -> list[list[int]]:
    tokenizer = models.tokenizer()
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in QUESTIONS
    ]
    return [ids(text) for text in texts]


def text_of(page: str) -> str:
    """What a reader sees, scripts and styles left out."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style)\b.*?</\1>", "", page)))
