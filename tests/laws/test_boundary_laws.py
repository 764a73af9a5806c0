"""Responses that a model really generates, token by token, are read, cut into segments and judged the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

import tl_l2norm as l2
from tests import models
from tests.families import FAMILIES, Family, tokenizer_of
from tests.scripted import writes
from tl_l2norm.text.boundaries import Boundaries

QUESTION = "What is 17 + 25?"
PROBLEM = l2.Problem(question=QUESTION, answer="42", family="custom")
WRONG = "Perhaps 17 and 25 is 32. So the answer is 32? No: carry one."


def load(place: Path, tokenizer: Any) -> Any:
    """A tiny Qwen3 with random weights and this tokenizer, as a user would load it."""
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return l2.load_model(place)


def ask(model: Any, response: str, *, mode: str = "think", stop: bool = True) -> Any:
    tokens = model.tokenizer(response, add_special_tokens=False).input_ids
    script = [*tokens, model.tokenizer.eos_token_id] if stop else tokens
    with writes(model, script):
        return l2.run_modes(
            model,
            [PROBLEM],
            modes=[mode],
            max_new_tokens=len(script),
            max_direct_tokens=len(script),
            batch_size=1,
            progress=False,
        )[0]


@pytest.fixture(scope="module", params=[f for f in FAMILIES if f.name in ("r1", "command", "gpt-oss", "gemma4", "granite-3.3")])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def model(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("family"), tokenizer_of(family, models.tokenizer()))


def test_an_answer_behind_a_thought_counts_and_the_thought_does_not(family: Family, model: Any) -> None:
    result = ask(model, family.response.replace("WORK", WRONG).replace("<|return|>", ""))
    assert result.correct is True and WRONG in result.response and WRONG not in result.answer
    thought = "".join(t for t, s in zip(result.trace.str_tokens, result.trace.segments, strict=True) if s == "think")
    assert WRONG in thought and "42" not in thought
    at = result.trace.labels["answer_at"]
    assert result.trace.segments[at] == "answer" and result.trace.str_tokens[at].strip().startswith("4")


def test_an_answer_in_a_thought_that_is_cut_off_is_none(family: Family, model: Any) -> None:
    before = family.response.partition("WORK")[0]
    result = ask(model, f"{before}17 and 25 is 42. The answer is 42. But", stop=False)
    assert result.correct is False and "answer_at" not in result.trace.labels
    assert result.answer == "" and result.trace.segments[-1] == "think"


def test_thinking_in_direct_mode_is_not_direct(family: Family, model: Any) -> None:
    whole = family.response.replace("WORK", WRONG).replace("<|return|>", "")
    if family.name == "r1":
        whole = f"<think>{whole}"
    assert ask(model, whole, mode="direct").direct is False
    plain = ask(model, " 42", mode="direct")
    assert plain.direct is True and plain.correct is True


# SentencePiece


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of Mistral's kind, whose decoder drops the space before the first token that it is given."""
    raw = Tokenizer(tokenizer_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    corpus = ["The answer is 42. It is false, and true too; Paris in spring, [INST] what is it? [/INST]"] * 40
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    raw.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    made = json.loads(raw.to_str())["model"]
    tokenizer = transformers.LlamaTokenizer(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])
    tokenizer.chat_template = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endfor %}"
    return load(tmp_path_factory.mktemp("sentencepiece"), tokenizer)


@pytest.mark.parametrize("words", ["Paris", "true too", "42. It is 42."])
def test_a_response_keeps_the_space_with_which_it_begins(sentencepiece: Any, words: str) -> None:
    tokenizer = sentencepiece.tokenizer
    tokens = tokenizer(f"The answer is {words}", add_special_tokens=False).input_ids
    start = len(tokenizer("The answer is", add_special_tokens=False).input_ids)
    assert tokenizer.decode(tokens[start:]) == words, "alone it loses the space"
    with writes(sentencepiece, [*tokens[start:], tokenizer.eos_token_id]):
        completion = l2.generate(sentencepiece, [tokens[:start]], max_new_tokens=50, progress=False)[0]
    assert completion.text == f" {words}" and "".join(completion.trace.str_tokens).endswith(f" {words}")


@pytest.mark.parametrize(
    ("prompt", "words", "stop", "text"),
    [
        ("The answer is", "42. It is 42.", " 42", ""),
        ("The answer is", "Paris in spring", " Paris in", ""),
        ("The answer is", "true too; Paris", " Paris", " true too;"),
        ("The answer is", "Paris in spring", "spring", " Paris in "),
    ],
)
def test_a_stop_string_is_found_where_a_response_shows_it(
    sentencepiece: Any, prompt: str, words: str, stop: str, text: str
) -> None:
    tokenizer = sentencepiece.tokenizer
    tokens = tokenizer(f"{prompt} {words}", add_special_tokens=False).input_ids
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    with writes(sentencepiece, [*tokens[start:], *[tokens[-1]] * 9]):
        completion = l2.generate(sentencepiece, [tokens[:start]], max_new_tokens=40, stop=stop, progress=False)[0]
    assert (completion.text, completion.finish_reason) == (text, "stop")
    shown = f" {words}".partition(stop)[0] + stop
    end = start + len(completion.tokens)
    assert tokenizer.decode(tokens[:end]).startswith(prompt + shown)
    assert not tokenizer.decode(tokens[: end - 1]).startswith(prompt + shown), "with its last token"


def test_a_stop_string_goes_over_a_token_that_is_no_text(model: Any, family: Family) -> None:
    tokenizer = model.tokenizer
    hides = Boundaries(tokenizer).hidden_ids
    hidden = next(token for token in family.special if tokenizer.convert_tokens_to_ids(token) in hides)
    written = ("4 stop", hidden, "ped here", " and on and on")
    script = [token for text in written for token in tokenizer(text, add_special_tokens=False).input_ids]
    with writes(model, script):
        completion = l2.generate(model, "Say:", max_new_tokens=len(script), stop="stopped", ignore_eos=True, progress=False)[0]
    assert (completion.text, completion.finish_reason) == ("4 ", "stop")
    assert tokenizer.decode(completion.tokens) == f"4 stop{hidden}ped"


# Chats


@pytest.mark.parametrize("name", ["qwen3", "exaone4", "glm-4.6", "r1"])
def test_an_assistant_s_message_begins_behind_its_header(name: str, tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.name == name)
    model = load(tmp_path, tokenizer_of(family, models.tokenizer()))
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is 42."}]
    trace = l2.collect(model, chat, progress=False)[0]
    response = "".join(trace.str_tokens[trace.prompt_len :])
    assert "It is 42." in response and QUESTION not in response
    assert set(trace.segments[trace.prompt_len :]) <= {"think", "answer"}


def test_a_thought_that_the_template_drops_is_refused(tmp_path: Path) -> None:
    model = load(tmp_path, tokenizer_of(next(f for f in FAMILIES if f.name == "r1"), models.tokenizer()))
    user = {"role": "user", "content": QUESTION}
    for message in (
        {"role": "assistant", "content": "<think>seventeen and so on</think>42"},
        {"role": "assistant", "content": "42", "reasoning_content": "seventeen and so on"},
        {"role": "assistant", "content": "42", "thinking": "seventeen and so on"},
    ):
        with pytest.raises(ValueError, match="leaves out what the last assistant's message thinks"):
            l2.collect(model, [[user, message]], progress=False)
    earlier = {"role": "assistant", "content": "<think>of an earlier turn</think>42"}
    l2.collect(model, [[user, earlier, user]], progress=False)  # as the model was trained to see it
