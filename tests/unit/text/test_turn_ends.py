from __future__ import annotations

import pytest

from tests import models
from tests.chat_templates import FAMILIES, tokenizer_of
from tl_l2norm.text.turn_ends import turn_ends


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_says_where_a_turn_ends(name: str) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    ends = turn_ends(tokenizer, frozenset())
    assert {tokenizer.convert_ids_to_tokens(end) for end in ends} == {family.eos, *family.ends}


def test_what_the_generation_config_names_stays() -> None:
    tokenizer = tokenizer_of("llama 3")
    known = frozenset(tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])) | {7}
    assert turn_ends(tokenizer, known) == known


def test_the_end_of_a_channel_is_no_end_even_where_a_file_names_it() -> None:
    tokenizer = tokenizer_of("gpt-oss")
    channel, called, returned = tokenizer.convert_tokens_to_ids(["<|end|>", "<|call|>", "<|return|>"])
    assert turn_ends(tokenizer, frozenset([channel, 5])) == {called, returned, 5}


def test_without_a_tokenizer_or_a_template() -> None:
    assert turn_ends(None, frozenset([3])) == {3}
    tokenizer = tokenizer_of("gemma")
    tokenizer.chat_template = None
    assert turn_ends(tokenizer, frozenset([3])) == {3, tokenizer.eos_token_id}
    tokenizer.eos_token = None
    assert turn_ends(tokenizer, frozenset()) == frozenset()


def test_a_template_that_is_broken_adds_nothing() -> None:
    tokenizer = tokenizer_of("gemma")
    for template in (
        "{% for",
        "{{ messages[7]['content'] + 1 }}",
        "{{ raise_exception('no') }}",
        "always the same<end_of_turn>",
    ):
        tokenizer.chat_template = template
        assert turn_ends(tokenizer, frozenset()) == {tokenizer.eos_token_id}


def test_smollm2_ends_where_its_files_say() -> None:
    assert turn_ends(models.tokenizer(), frozenset([2])) == {2}
