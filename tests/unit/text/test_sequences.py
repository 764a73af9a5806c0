from types import SimpleNamespace
from typing import Any

import torch

import tl_l2norm as l2
from tests import models
from tl_l2norm.models.backends import backend_of
from tl_l2norm.text.sequences import as_list, pad_left, token_texts, tokenize

P, T, A = "prompt", "think", "answer"


def test_one_sequence_counts_as_one() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert as_list("abc") == ["abc"]
    assert as_list(chat) == [chat]
    assert as_list([chat, chat]) == [chat, chat]
    assert as_list([1, 2, 3]) == [[1, 2, 3]]
    assert as_list([[1, 2], [3]]) == [[1, 2], [3]]
    assert len(as_list(torch.tensor([1, 2, 3]))) == 1
    assert len(as_list(torch.tensor([[1, 2, 3], [4, 5, 6]]))) == 2


def test_texts_of_tokens_put_together_are_the_text(smollm2_tokenizer: Any) -> None:
    text = "Ünïcödé 🤗👩‍👩‍👧 and a tab\t, <think>2 < 3</think>\n\n  indented 数学"
    ids = smollm2_tokenizer(text, add_special_tokens=False).input_ids
    texts = token_texts(smollm2_tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == text
    assert "" in texts, "an emoji of several tokens shows with its last"


def test_padding_is_on_the_left_and_masked() -> None:
    tokens, mask = pad_left([[5, 6, 7], [8]], torch.device("cpu"))
    assert tokens[0].tolist() == [5, 6, 7] and tokens[1, -1] == 8
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_chat_is_rendered_by_the_template(smollm2: Any) -> None:
    backend, tokenizer = backend_of(smollm2), models.tokenizer("smollm2")
    chat = [{"role": "user", "content": "Say hi."}]
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    )
    open_end = tokenize(backend, chat)[0]
    assert tokenizer.decode(open_end.tokens) == expected
    assert open_end.prompt_len == len(open_end) and set(open_end.segments) == {"prompt"}
    whole = tokenize(backend, [*chat, {"role": "assistant", "content": "Hi!"}])[0]
    assert whole.tokens[: whole.prompt_len] == open_end.tokens
    assert tokenizer.decode(whole.tokens[whole.prompt_len :]).startswith("Hi!<|im_end|>")
    assert whole.segments[whole.prompt_len :] == ("answer",) * (len(whole) - whole.prompt_len)


def test_bos_is_as_asked(smollm2: Any) -> None:
    backend = backend_of(smollm2)
    bare = models.tokenizer("smollm2")("Hello", add_special_tokens=False).input_ids
    assert list(tokenize(backend, "Hello", prepend_bos=False)[0].tokens) == bare
    assert list(tokenize(backend, "Hello", prepend_bos=True)[0].tokens) == [1, *bare]
    assert list(tokenize(backend, "Hello")[0].tokens) == list(smollm2.tokenizer("Hello").input_ids)


def test_the_caller_may_say_where_a_response_begins(smollm2: Any) -> None:
    trace = l2.collect(smollm2, [[5, 6, 7, 8]], prompt_lens=[2])[0]
    assert trace.segments == (P, P, A, A)
    trace = l2.collect(smollm2, [[5, 6, 7, 8]], segments=[[P, T, T, A]])[0]
    assert trace.prompt_len == 1 and trace.in_segment("think").tolist() == [False, True, True, False]


def test_a_stop_string_ends_a_response_and_is_left_out_of_its_text(smollm2: Any) -> None:
    out = l2.generate(smollm2, "Count: 1, 2, 3, 4,", prepend_bos=True, max_new_tokens=20, stop=[" 7", "99"])[0]
    assert (out.text, out.finish_reason) == (" 5, 6,", "stop")
    assert models.tokenizer("smollm2").decode(out.tokens).endswith(" 7")
    assert len(out.trace) == len(out.prompt_tokens) + len(out.tokens) - 1
    cut = l2.generate(smollm2, "Count: 1, 2, 3, 4,", prepend_bos=True, max_new_tokens=4)[0]
    assert cut.finish_reason == "length" and len(cut.tokens) == 4


def test_the_last_token_of_a_completion_may_end_its_thinking_though_it_has_no_state(smollm2: Any) -> None:
    backend, encode = backend_of(smollm2), models.tokenizer("smollm2").encode
    prompt, thought, more = encode("Why?"), encode("<think>a</think>"), encode(" b c")
    for last, segment in ((encode("</think>"), T), (encode(" d"), A)):
        completion = SimpleNamespace(prompt_tokens=tuple(prompt), tokens=(*thought, *more, *last))
        (read,) = tokenize(backend, completion)
        assert read.tokens == (*prompt, *thought, *more, *last[:-1])
        assert read.segments[: len(prompt) + len(thought)] == (P,) * len(prompt) + (T,) * len(thought)
        assert set(read.segments[len(prompt) + len(thought) :]) == {segment}
        (placed,) = tokenize(backend, completion, prompt_lens=[len(prompt)])
        assert placed.segments == read.segments and placed.texts == read.texts
