from __future__ import annotations

from pathlib import Path

import gguf

from tests.tiny_gguf import TOKENS, write_gguf
from tl_l2norm.models.sources import bundled_file
from tl_l2norm.text.gguf_header import read_header, turn_end_ids


def test_ends_of_turn_and_message_are_found_behind_the_vocabulary(tmp_path: Path) -> None:
    cases: list[dict[str, str]] = [{}, {"eot": "<|eot|>"}, {"eom": "<|eom|>"}, {"eot": "<|eot|>", "eom": "<|eom|>"}]
    for roles in cases:
        write_gguf(tmp_path / "a.gguf", bos="<|begin|>", eos="<|endoftext|>", **roles)
        assert turn_end_ids(tmp_path / "a.gguf") == {TOKENS.index(token) for token in roles.values()}


def test_every_kind_of_value_is_stepped_over(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "kinds.gguf", "llama")
    for width in (8, 16, 32, 64):
        getattr(writer, f"add_uint{width}")(f"u{width}", 7)
        getattr(writer, f"add_int{width}")(f"i{width}", -7)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("words", "tokenizer.ggml.eot_token_id, in a text: ü")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("names", ["a", "", "日本"])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_uint32("tokenizer.ggml.eot_token_id", 11)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert turn_end_ids(tmp_path / "kinds.gguf") == {11}


def test_the_architecture_s_entries_are_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    cases: list[dict[str, str]] = [{}, {"eot": "<|eot|>"}, {"bos": "<|begin|>", "eos": "<|endoftext|>"}]
    for i, roles in enumerate(cases):
        write_gguf(file := tmp_path / f"{i}.gguf", **roles)
        reader, header = gguf.GGUFReader(file), read_header(file)
        fields = {name: field for name, field in reader.fields.items() if name.startswith("llama.")}
        assert header.architecture == "llama" and len(fields) > 7
        assert header.entries == {name.removeprefix("llama."): field.contents() for name, field in fields.items()}
        assert header.tensors == {tensor.name for tensor in reader.tensors}


def test_smollm2_has_none() -> None:
    assert turn_end_ids(bundled_file("smollm2")) == frozenset()
