"""The file is parsed once, what is read is what transformers reads, and `gguf` is left as it was."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from gguf.tensor_mapping import TensorNameMap
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests import tiny_gguf
from tl_l2norm.core.errors import InputError
from tl_l2norm.models.gguf_once import parsed_once
from tl_l2norm.models.reading import Plain, read
from tl_l2norm.models.sources import bundled_file, find_source

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GIVEN = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiny_gguf.write_gguf(tmp_path / "m.gguf", bos="<|begin|>", eos="<|endoftext|>")
    return tmp_path / "m.gguf"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the file was parsed, and a table of names made."""
    counted: Counter[str] = Counter()

    def count(kind: type) -> None:
        make = kind.__init__

        def counting(self: Any, *args: Any) -> None:
            counted[kind.__name__] += 1
            make(self, *args)

        monkeypatch.setattr(kind, "__init__", counting)

    count(gguf.GGUFReader)
    count(TensorNameMap)
    return counted


def by_transformers(file: Path, dtype: torch.dtype) -> Plain:
    call: dict[str, Any] = {"gguf_file": file.name, "dtype": dtype}
    return Plain(
        AutoModelForCausalLM.from_pretrained(file.parent, config=AutoConfig.from_pretrained(file.parent, **call), **call),
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
    )


def require_same(ours: Plain, theirs: Plain) -> None:
    weights, expected = ours.model.state_dict(), theirs.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(weights[name].dtype is expected[name].dtype for name in weights)
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
    buffers, expected = dict(ours.model.named_buffers()), dict(theirs.model.named_buffers())
    assert buffers.keys() == expected.keys() and all(torch.equal(buffers[name], expected[name]) for name in buffers)
    described = theirs.model.config.to_dict()
    assert ours.model.config.to_dict() == {name: value for name, value in described.items() if name != "quantization_config"}
    assert ours.tokenizer.backend_tokenizer.to_str() == theirs.tokenizer.backend_tokenizer.to_str()
    assert type(ours.tokenizer) is type(theirs.tokenizer) and ours.tokenizer.chat_template == theirs.tokenizer.chat_template
    assert ours.tokenizer.special_tokens_map == theirs.tokenizer.special_tokens_map


def is_given() -> bool:
    return all(getattr(gguf, name) is given for name, given in GIVEN.items())


def test_the_file_is_parsed_once(file: Path, made: Counter[str]) -> None:
    read(find_source(file), torch.float32)
    assert made == {"GGUFReader": 1, "TensorNameMap": 1}


def test_the_next_reading_parses_it_anew(file: Path, made: Counter[str]) -> None:
    """A file may have changed."""
    first = read(find_source(file), torch.float32)
    tiny_gguf.write_gguf(file, bos="<|begin|>", eos="<|eot|>")
    second = read(find_source(file), torch.float32)
    assert made["GGUFReader"] == 2
    assert (first.tokenizer.eos_token, second.tokenizer.eos_token) == ("<|endoftext|>", "<|eot|>")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_configuration_and_tokenizer_are_those_that_transformers_reads(file: Path, dtype: torch.dtype) -> None:
    require_same(read(find_source(file), dtype), by_transformers(file, dtype))


def test_quantised_weights_of_another_architecture_are_too(tmp_path: Path) -> None:
    hf_model = tiny_gguf.random_model(transformers.Qwen2Config)
    tiny_gguf.write_model(tmp_path / "m.gguf", hf_model, "qwen2", packed_as=gguf.GGMLQuantizationType.Q8_0)
    ours = read(find_source(tmp_path / "m.gguf"), torch.float32)
    require_same(ours, by_transformers(tmp_path / "m.gguf", torch.float32))
    weight, packed = (of.model.layers[0].mlp.up_proj.weight for of in (hf_model, ours.model))
    assert 0 < (weight - packed).abs().max() < 0.02


@pytest.mark.slow
def test_smollm2_is_too() -> None:
    require_same(read(find_source("smollm2"), torch.bfloat16), by_transformers(bundled_file("smollm2"), torch.bfloat16))


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_gguf_is_as_it_was_afterwards(file: Path, part: float) -> None:
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    if part == 1.0:
        read(find_source(file), torch.float32)
    else:
        with pytest.raises(InputError, match="cut off"):
            read(find_source(file), torch.float32)
    assert is_given()


def test_a_reader_in_between_is_one_of_gguf_s(file: Path) -> None:
    with parsed_once():
        one, other, another_mode = gguf.GGUFReader(file), gguf.GGUFReader(str(file)), gguf.GGUFReader(file, "c")
        assert isinstance(one, GIVEN["GGUFReader"]) and one.fields is other.fields is not another_mode.fields
        alone = GIVEN["GGUFReader"](file)
        assert [field.contents() for field in one.fields.values()] == [field.contents() for field in alone.fields.values()]
        assert all((a.data == b.data).all() for a, b in zip(one.tensors, alone.tensors, strict=True))


def test_threads_take_turns(tmp_path: Path) -> None:
    for i, end in enumerate(ends := ("<|endoftext|>", "<|eot|>", "<|eom|>") * 2):
        tiny_gguf.write_gguf(tmp_path / f"{i}.gguf", bos="<|begin|>", eos=end)
    sources = [find_source(tmp_path / f"{i}.gguf") for i in range(len(ends))]
    with ThreadPoolExecutor(len(ends)) as pool:
        several = list(pool.map(lambda source: read(source, torch.float32), sources))
    assert tuple(plain.tokenizer.eos_token for plain in several) == ends
    assert is_given()
