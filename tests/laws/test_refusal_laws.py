"""What a model's files or its architecture don't allow is refused by name, and norms go on where they can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tl_l2norm as l2
from tests import models
from tests.tiny_folders import SMALL, llama, norms_and_logits, plain, save

needs_hooked = pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
TOKENS = [(31 * i * i + 7 * i) % models.VOCABULARY for i in range(24)]
_OPT = {"vocab_size": models.VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_OPT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "init_std": 0.15}
_BERT = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
_BERT |= {"num_attention_heads": 4, "initializer_range": 0.15, "is_decoder": True}

NO_LENS = {
    "OPT without a final norm": (lambda: transformers.OPTConfig(**_OPT), "no final norm", lambda m: m.model.decoder.layers),
    "BERT": (lambda: transformers.BertConfig(**_BERT), "something stands between", lambda m: m.bert.encoder.layer),
    "BERT, deeper": (
        lambda: transformers.BertConfig(**_BERT | {"num_hidden_layers": 5, "hidden_act": "relu"}),
        "something stands between",
        lambda m: m.bert.encoder.layer,
    ),
}


@pytest.mark.filterwarnings("ignore:.*no place in")
@pytest.mark.parametrize("name", NO_LENS)
def test_a_head_of_another_kind_has_no_logit_lens_but_norms(name: str, tmp_path: Path) -> None:
    make, said, blocks = NO_LENS[name]
    place = save(make(), tmp_path / "m")
    model, hf_model = l2.load_model(place, device="cpu"), plain(place)
    norms, _ = norms_and_logits(hf_model, blocks(hf_model), TOKENS)
    its_norms = l2.collect(model, [TOKENS], metrics=["hidden_entropy"], progress=False)[0].l2_norms
    assert ((its_norms - norms).abs() / norms).max() < 1e-5
    with pytest.raises(NotImplementedError, match=f"{said}.*output_entropy"):
        l2.collect(model, [TOKENS], metrics=["output_entropy"], progress=False)
    checks = {check.name: check for check in l2.selfcheck(model).checks}
    assert checks["norms"].passed and checks["file: norms"].passed and checks["logit lens"].result == "FAIL"
    assert said in checks["logit lens"].meaning, "a failed check says why"


HOOKED = {
    "Phi3ForCausalLM": lambda: transformers.Phi3Config(
        **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "OPTForCausalLM": lambda: transformers.OPTConfig(**_OPT),
    "GptOssForCausalLM": lambda: transformers.GptOssConfig(
        **SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 3
    ),
}


@needs_hooked
@pytest.mark.parametrize("architecture", HOOKED)
def test_what_hooked_stumbles_over_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    place = save(HOOKED[architecture](), tmp_path / "m")
    with pytest.raises(NotImplementedError, match=f"{architecture}.*use backend='bridge'"):
        l2.load_model(place, backend="hooked", device="cpu")


@pytest.mark.parametrize("backend", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("broken", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_nan_is_named(backend: Any, broken: str, tmp_path: Path) -> None:
    place = llama(tmp_path / "m")
    weights = load_file(place / "model.safetensors")
    weights[broken].view(-1)[7] = torch.nan
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"NaN or infinity in {broken}: the files are broken"):
        l2.load_model(place, backend=backend, device="cpu")


GENERATION: dict[str, tuple[str, str]] = {
    "cut off": ('{"eos', "generation_config.json is no JSON"),
    "a list": ("[2]", "holds a list, not settings by name"),
    "a text for an end": ('{"eos_token_id": "2"}', "eos_token_id in .*generation_config.json has '2', which is no token id"),
    "a text among ends": ('{"eos_token_id": [2, "<end>"]}', "has '<end>', which is no token id"),
}


@pytest.mark.parametrize("name", GENERATION)
def test_a_generation_config_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    place = llama(tmp_path / "m")
    text, said = GENERATION[name]
    (place / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        l2.load_model(place, device="cpu")


@pytest.mark.parametrize("ends", ["2", [2, "5"], True, 2.0])
def test_an_end_that_is_set_later_is_checked_too(ends: Any, tmp_path: Path) -> None:
    model = l2.load_model(llama(tmp_path / "m"), device="cpu")
    model.original_model.generation_config.eos_token_id = ends
    with pytest.raises(ValueError, match="which is no token id"):
        l2.generate(model, [[5, 6, 7]], max_new_tokens=2, progress=False)


@pytest.mark.parametrize("ends", [[2, 99_999], [-1, 2], 60_000])
def test_ends_outside_the_vocabulary_are_none(ends: Any, tmp_path: Path) -> None:
    from tl_l2norm.models.backends import backend_of

    place = llama(tmp_path / "m")
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    model = l2.load_model(place, device="cpu")
    assert backend_of(model).eos_token_ids() == {2}  # the tokenizer's
    assert l2.selfcheck(model).passed


IGNORED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 8},
    {"suppress_tokens": [5, 6]},
]


@pytest.mark.parametrize("settings", IGNORED)
def test_settings_that_are_not_followed_are_named_once(settings: dict[str, Any], tmp_path: Path) -> None:
    place = llama(tmp_path / "m")
    neutral = {"eos_token_id": 2, "repetition_penalty": 1.0, "num_beams": 1, "do_sample": True, "temperature": 0.6}
    (place / "generation_config.json").write_text(json.dumps(neutral | settings))
    model = l2.load_model(place, device="cpu")
    with pytest.warns(UserWarning, match=".*".join(f"{name}=" for name in sorted(settings, reverse=True))) as said:
        l2.generate(model, [[5, 6, 7]], max_new_tokens=2, progress=False)
        l2.generate(model, [[5, 6, 7]], max_new_tokens=2, progress=False)
    assert len(said) == 1 and "temperature" not in str(said[0].message)


def _extra(place: Path, **weights: torch.Tensor) -> None:
    file = place / "model.safetensors"
    save_file(load_file(file) | weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.sinks", "model.extra.weight"]
)
def test_weights_without_a_place_fail_the_check(name: str, tmp_path: Path) -> None:
    place = llama(tmp_path / "m")
    _extra(place, **{name: torch.ones(4)})
    with pytest.warns(UserWarning, match=f"no place in LlamaForCausalLM: {name}") as said:
        model = l2.load_model(place, device="cpu")
        checked = l2.selfcheck(model)
    checks = {check.name: check for check in checked.checks}
    assert len(said) == 1 and not checked.passed
    assert (checks["file: weights"].measured, checks["file: weights"].result) == (1, "FAIL") and name in checks[
        "file: weights"
    ].meaning


def _pointer(place: Path) -> None:
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def _edited(place: Path, **entries: Any) -> None:
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


OPAQUE = {
    "a pointer": (_pointer, "model.safetensors is a pointer of Git LFS.*git lfs pull"),
    "a vocabulary": (
        lambda place: _edited(place, vocab_size=4000),
        rf"lm_head.weight, \({models.VOCABULARY}, 32\) in the files and \(4000, 32\) by config.json",
    ),
    "a width": (lambda place: _edited(place, intermediate_size=50), r"\(32, 48\) in the files and \(32, 50\) by config.json"),
    "an end of another type": (lambda place: _edited(place, eos_token_id="2"), "eos_token_id"),
    "a rotation": (
        lambda place: _edited(place, rope_parameters={"rope_type": "mystery", "factor": 4.0, "rope_theta": 1e4}),
        "there is no 'mystery', which config.json asks for",
    ),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_wrong_with_files_is_said_plainly(name: str, tmp_path: Path) -> None:
    change, said = OPAQUE[name]
    place = llama(tmp_path / "m")
    change(place)
    with pytest.raises(ValueError, match=f"can't load the model in.*{said}"):
        l2.load_model(place, device="cpu")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "other.safetensors"])
def test_an_adapter_that_is_no_safetensors_is_refused(name: str, tmp_path: Path) -> None:
    base, place = llama(tmp_path / "base"), tmp_path / "adapter"
    place.mkdir()
    (place / name).write_bytes(b"anything")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors: pickled weights \(.bin\) may run code"):
        l2.load_model(place, device="cpu")


@pytest.mark.parametrize("prepend_bos", [None, True])
@pytest.mark.parametrize("text", ["{bos}user: Hi", "{bos}", "{bos} and {bos} again"])
def test_a_text_that_begins_with_bos_gets_no_second(text: str, prepend_bos: bool | None, tmp_path: Path) -> None:
    """Against the files' own tokenizer, which adds none."""
    place = llama(tmp_path / "m")
    model = l2.load_model(place, device="cpu")
    files = transformers.AutoTokenizer.from_pretrained(place)
    begun = text.format(bos=files.bos_token)
    truth = files(begun, add_special_tokens=False).input_ids
    assert truth[0] == files.bos_token_id and model.tokenizer("a").input_ids[0] == files.bos_token_id
    trace, bare = l2.collect(model, [begun, "Hi"], prepend_bos=prepend_bos, progress=False)
    assert trace.tokens.tolist() == truth
    assert bare.tokens.tolist() == [files.bos_token_id, *files("Hi").input_ids]
    done = l2.generate(model, [begun], prepend_bos=prepend_bos, max_new_tokens=1, progress=False)[0]
    assert list(done.prompt_tokens) == truth
