"""What is handed in where sequences go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_l2norm as l2
from tests import models
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.models.backends import backend_of
from tl_l2norm.text.inputs import as_list, chat_messages, ids_of
from tl_l2norm.text.sequences import tokenize

PAD, BOS, EOS = 0, 1, 2
IDS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=4)


class tokenizer:
    """Of which only the special tokens are asked."""

    chat_template = None
    __call__ = decode = apply_chat_template = convert_tokens_to_ids = lambda *_, **__: None

    def __init__(self, pad: int | None = PAD, bos: int | None = BOS, eos: int | None = EOS) -> None:
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad, bos, eos


@given(rows=IDS, left=st.booleans(), kind=st.sampled_from([torch.tensor, np.array, list]))
def test_a_mask_takes_padding_away_whatever_the_ids_are(rows: list[list[int]], left: bool, kind: Any) -> None:
    width = max(map(len, rows))
    ids = [[PAD] * (width - len(row)) + row if left else row + [PAD] * (width - len(row)) for row in rows]
    ones = [[0] * (width - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (width - len(row)) for row in rows]
    assert as_list({"input_ids": kind(ids), "attention_mask": kind(ones)}, tokenizer()) == rows


@pytest.mark.parametrize(
    "rows",
    [
        [[5, 6, 7], [PAD, 8, 9]],
        [[5, 6, 7], [PAD, PAD, 9]],
        [[5, 6, 7], [8, PAD, PAD]],
        [[5, 6, 7], [8, 9, PAD]],
        [[5, 6, PAD, PAD]],  # one row, to a fixed length
        [[5, 6, 40, 40], [5, 6, 7, 8]],  # some other token's
        [[40, 40, 7, 8], [5, 6, 7, 8]],
    ],
)
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_rows_that_look_padded_are_refused_without_a_mask(rows: list[list[int]], kind: Any) -> None:
    with pytest.raises(InputError, match=r"looks like padding.*attention_mask"):
        as_list(kind(rows), tokenizer())
    mask = kind([[1] * len(row) for row in rows])
    assert as_list({"input_ids": kind(rows), "attention_mask": mask}, tokenizer()) == rows, "a mask that says all are real"


@pytest.mark.parametrize(
    ("rows", "pad", "bos", "eos"),
    [
        ([[5, 6, 7], [8, 9, 10]], PAD, BOS, EOS),
        ([[BOS, 6, 7], [BOS, 9, 10]], PAD, BOS, EOS),
        ([[2, 6, 7], [2, 9, 10]], 2, 2, 2),  # as GPT-2's: BOS is what pads
        ([[5, 6, 2], [8, 9, 2]], 2, 1, 2),  # a real end of both
        ([[BOS, BOS, 7], [BOS, BOS, 10]], PAD, BOS, EOS),  # twice in all rows: not what makes them of one length
        ([[5, 6, 6]], PAD, BOS, EOS),
        ([[5]], None, None, None),
    ],
)
def test_rows_that_are_certainly_whole_are_taken(rows: list[list[int]], pad: Any, bos: Any, eos: Any) -> None:
    assert as_list(torch.tensor(rows), tokenizer(pad, bos, eos)) == rows


@pytest.mark.parametrize("rows", [[[2, 6, 7], [2, 2, 10]], [[6, 7, 2], [10, 2, 2]], [[5, 6, 7], [2, 9, 10]]])
def test_where_bos_or_eos_pads_more_of_it_than_one_is_padding(rows: list[list[int]]) -> None:
    with pytest.raises(InputError, match="looks like padding"):
        as_list(torch.tensor(rows), tokenizer(2, 2, 2))


def test_lists_are_rows_of_their_own_and_only_certain_padding_is_refused() -> None:
    assert as_list([[5, 6, 6], [5, 6, 7]], tokenizer()) == [[5, 6, 6], [5, 6, 7]]
    assert as_list([[PAD, PAD, 6], [7]], tokenizer()) == [[PAD, PAD, 6], [7]], "of other lengths: nobody padded them"
    with pytest.raises(InputError, match="looks like padding"):
        as_list([[PAD, PAD, 6], [5, 6, 7]], tokenizer())


def test_a_mask_with_a_hole_is_refused() -> None:
    with pytest.raises(InputError, match="within row 0"):
        as_list({"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]})


@pytest.mark.parametrize(
    "of", [list, tuple, pd.Series, iter, lambda x: (one for one in x), lambda x: np.array(x, dtype=object)]
)
def test_whatever_iterates_holds_sequences(of: Any) -> None:
    assert as_list(of(["one", "two"])) == ["one", "two"]


@pytest.mark.parametrize("scalar", [int, np.int32, np.uint8, torch.tensor, np.array])
def test_ids_of_any_integer_kind_are_one_sequence(scalar: Any) -> None:
    assert as_list([scalar(5), scalar(6)]) == [[5, 6]]
    assert ids_of([scalar(5)]) == [5] and type(ids_of([scalar(5)])[0]) is int


@pytest.mark.parametrize("odd", [5.0, True, None, "5", np.float32(5), torch.tensor(5.0), [5], np.bool_(True)])
def test_what_is_no_id_is_refused_by_name(odd: Any) -> None:
    with pytest.raises(InputTypeError, match="token ids"):
        ids_of([7, odd])


def test_rows_of_a_data_set() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert as_list({"messages": chat, "source": "x"}) == [chat]
    assert as_list([{"prompt": "a"}, {"text": "b"}, {"input_ids": [5, 6]}]) == ["a", "b", [5, 6]]
    assert as_list(chat[0]) == [chat] and as_list(chat) == [chat] and as_list([chat, chat]) == [chat, chat]
    with pytest.raises(InputError, match="'question', 'answer'"):
        as_list({"question": "a", "answer": "b"})


def test_parts_of_a_message_are_put_together_and_what_is_no_text_is_refused() -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}, " and a string"]
    assert chat_messages([{"role": "user", "content": parts, "name": "x"}]) == [
        {"role": "user", "content": "two parts and a string", "name": "x"}
    ]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert chat_messages([calls]) == [calls], "a call has no text"
    for odd in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}, 5, {"type": "text"}):
        with pytest.raises(InputError, match="message 1 holds a part"):
            chat_messages([{"role": "user", "content": "hi"}, {"role": "user", "content": [odd]}])
    for odd in (5, None, [], {"text": "hi"}):
        with pytest.raises(InputError, match="its content is a text"):
            chat_messages([{"role": "user", "content": odd}])


def test_a_template_that_refuses_a_chat_is_told_of(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="sequence 0: the chat template refuses these messages: roles must alternate"):
        l2.collect(smollm2, [{"role": "user", "content": "hi"}])


BEGINNINGS = ["The answer is", "Well, 17 + 25 is 42, and", "Let me", " x = "]


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_chat_that_ends_with_the_assistants_beginning_is_left_open(smollm2: Any, beginning: str) -> None:
    backend, plain = backend_of(smollm2), models.tokenizer("smollm2")
    chat = [{"role": "user", "content": "What is 17 + 25?"}, {"role": "assistant", "content": beginning}]
    one = tokenize(backend, chat, continues=True)[0]
    opened = plain.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert plain.decode(one.tokens).rstrip() == (opened + beginning).rstrip()
    assert set(one.segments) == {"prompt"}
    whole = tokenize(backend, chat)[0]
    assert set(whole.segments) == {"prompt", "answer"} and plain.decode(whole.tokens).rstrip().endswith("<|im_end|>")


def test_a_beginning_that_the_template_changes_is_refused(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"
    monkeypatch.setattr(smollm2.tokenizer, "chat_template", template)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    with pytest.raises(InputError, match="can't be continued"):
        tokenize(backend_of(smollm2), chat, continues=True)


def test_padded_and_plain_give_the_same_norms(tiny: Any) -> None:
    texts = ["one two three four five", "six", "seven eight"]
    alone = l2.collect(tiny, [models.tokenizer()(text).input_ids for text in texts], progress=False)
    for side in ("left", "right"):
        tiny.tokenizer.padding_side = side
        encoded = tiny.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        for trace, own in zip(l2.collect(tiny, encoded, progress=False), alone, strict=True):
            assert trace.tokens.tolist() == own.tokens.tolist()
            torch.testing.assert_close(trace.l2_norms, own.l2_norms)
