"""A loaded model is the file's, or it isn't loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import tl_l2norm as l2
from tests import models, tiny_folders, tiny_gguf
from tests.slow import slow_but
from tests.tiny_folders import SMALL, llama, norms_and_logits, plain, save
from tests.tiny_gguf import random_model

needs_hooked = pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
TOKENS = [(31 * i * i + 7 * i) % models.VOCABULARY for i in range(200)]  # past every window and unscaled length below


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


def lens(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    norms = l2.collect(model, [TOKENS])[0].l2_norms
    with torch.no_grad():
        return norms.double(), model(torch.tensor([TOKENS]))[0]


def assert_same(model: Any, hf_model: Any, blocks: Any) -> None:
    norms, logits = norms_and_logits(hf_model, blocks, TOKENS)
    its_norms, its_logits = lens(model)
    assert ((its_norms - norms).abs() / norms).max() < 1e-4
    assert ((its_logits - logits).abs().max() / logits.std()) < 1e-3


CONVERTED = {
    "llama: llama3 scaling": lambda: transformers.LlamaConfig(
        **SMALL,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "qwen2: linear scaling": lambda: transformers.Qwen2Config(**SMALL, **rope("linear", factor=3.0)),
    "qwen2: windows from block 1 on": lambda: transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "qwen3: yarn and biases": lambda: transformers.Qwen3Config(
        **SMALL, head_dim=8, attention_bias=True, **rope("yarn", factor=4.0, original_max_position_embeddings=64)
    ),
    "mistral: yarn in a window": lambda: transformers.MistralConfig(
        **SMALL, sliding_window=50, **rope("yarn", factor=2.0, original_max_position_embeddings=100)
    ),
    "phi3: a window": lambda: transformers.Phi3Config(**SMALL, sliding_window=30),
}


@needs_hooked
@pytest.mark.parametrize("name", CONVERTED)
def test_hooked_is_the_model_in_the_folder_at_every_position(name: str, tmp_path: Path) -> None:
    place = save(CONVERTED[name](), tmp_path / "m")
    hf_model = plain(place)
    assert_same(l2.load_model(place, backend="hooked", device="cpu"), hf_model, hf_model.model.layers)


REFUSED = {
    "mlp_bias": lambda: transformers.LlamaConfig(**SMALL, mlp_bias=True),
    "dynamic": lambda: transformers.LlamaConfig(**SMALL, **rope("dynamic", factor=2.0)),
    "longrope": lambda: transformers.Phi3Config(
        **SMALL, **rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=64)
    ),
    "GemmaForCausalLM": lambda: transformers.GemmaConfig(**SMALL, head_dim=8),
}


@needs_hooked
@pytest.mark.parametrize("named", slow_but(["mlp_bias"], REFUSED))
def test_what_hooked_lacks_is_refused_by_name(named: str, tmp_path: Path) -> None:
    place = save(REFUSED[named](), tmp_path / "m")
    with pytest.raises(l2.errors.Unsupported, match=f"{named}.*use backend='bridge'"):
        l2.load_model(place, backend="hooked", device="cpu")
    assert l2.selfcheck(l2.load_model(place, device="cpu")).passed


@needs_hooked
@pytest.mark.parametrize("change", [{"rotary_base": 20000.0}, {"eps": 0.3}, {"act_fn": "relu"}, {"attn_scale": 5.0}])
def test_a_wrong_conversion_doesnt_pass(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_l2norm.models import hooked

    right = hooked.hooked_config
    monkeypatch.setattr(hooked, "hooked_config", lambda *given: right(*given) | change)
    with pytest.raises(l2.errors.Unsupported, match="use backend='bridge'"):
        l2.load_model(models.folder("llama"), backend="hooked", device="cpu")


@pytest.mark.parametrize("part", ["input_layernorm", "down_proj", "rotary_emb"])
def test_a_bridge_that_computes_something_else_doesnt_pass(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    right = TransformerBridge.boot_transformers

    def wrong(name: str, **call: Any) -> Any:
        module = next(m for n, m in call["hf_model"].named_modules() if n.endswith(part))
        tensor = module.inv_freq if part == "rotary_emb" else module.weight.data
        tensor.mul_(0.5)
        return right(name, **call)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", wrong)
    with pytest.raises(l2.errors.Unsupported, match="something else"):
        l2.load_model(models.folder("llama"), device="cpu")


@pytest.mark.parametrize("make", [transformers.CohereConfig, transformers.Cohere2Config, transformers.Starcoder2Config])
def test_the_bridge_is_right_or_refused(make: Any, tmp_path: Path) -> None:
    """TransformerLens 3.9 rotates Cohere's heads by halves and not by pairs."""
    place = save(make(**SMALL), tmp_path / "m")
    try:
        model = l2.load_model(place, device="cpu")
    except l2.errors.Unsupported as error:
        assert "computes something else" in str(error)
        return
    hf_model = plain(place)
    assert_same(model, hf_model, hf_model.model.layers)


def _rewrite(place: Path, change: Any) -> None:
    weights = load_file(place / "model.safetensors")
    change(weights)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def _halve(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BROKEN: dict[str, tuple[Any, str]] = {
    "a weight lacks": (lambda p: _rewrite(p, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")), "lack 1 weights.*up_proj"),
    "a norm lacks": (lambda p: _rewrite(p, lambda w: w.pop("model.norm.weight")), "lack 1 weights.*model.norm"),
    "a block too few": (lambda p: tiny_folders.edit_config(p, num_hidden_layers=4), "lack 9 weights"),
    "of another shape": (lambda p: tiny_folders.edit_config(p, intermediate_size=50), "can't load the model in"),
    "cut off": (_halve, "can't load the model in"),
    "no configuration": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "broken configuration": (lambda p: (p / "config.json").write_text("{"), "not a valid JSON"),
    "no tokenizer": (lambda p: [file.unlink() for file in p.glob("*token*")], "its tokenizer can't be"),
    "an adapter within": (lambda p: _rewrite(p, lambda w: w.update({"model.x.lora_A.weight": torch.ones(2)})), "adapter"),
    "quantised": (
        lambda p: tiny_folders.edit_config(p, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised.*gptq",
    ),
    "an encoder": (lambda p: tiny_folders.edit_config(p, model_type="vit"), "no language model"),
    "an encoder and a decoder": (lambda p: tiny_folders.edit_config(p, model_type="t5"), "decoder-only"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_whole_model_are_refused(name: str, tmp_path: Path) -> None:
    change, said = BROKEN[name]
    place = llama(tmp_path / "m")
    change(place)
    with pytest.raises(ValueError, match=said):
        l2.load_model(place, device="cpu")


def test_weights_without_a_place_are_named(tmp_path: Path) -> None:
    place = llama(tmp_path / "m")
    _rewrite(place, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    with pytest.warns(UserWarning, match="no place in LlamaForCausalLM: model.layers.0.self_attn.q_proj.bias"):
        l2.load_model(place, device="cpu")


@needs_hooked
@pytest.mark.parametrize("word", ["llama", "gemma-2-9b", "medgemma-1b"])
def test_no_path_decides_what_a_model_is(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save(transformers.Qwen3Config(**SMALL, head_dim=16), tmp_path / word)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    model = l2.load_model(place, backend="hooked", device="cpu")
    assert (model.cfg.original_architecture, model.cfg.model_name) == ("Qwen3ForCausalLM", word)
    hf_model = plain(place)
    assert_same(model, hf_model, hf_model.model.layers)


@pytest.mark.parametrize("name", ["gpt2-small", "gemma-2b", "pythia"])
def test_a_folder_called_like_another_model(name: str, tmp_path: Path) -> None:
    model = l2.load_model(llama(tmp_path / name), device="cpu")
    assert (model.cfg.model_name, model.cfg.architecture) == (name, "LlamaForCausalLM")


class TestAdapters:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return llama(tmp_path / "base")

    @pytest.fixture
    def adapter(self, base: Path, tmp_path: Path) -> Path:
        """Written by hand, as PEFT writes LoRA."""
        place = tmp_path / "adapter"
        place.mkdir()
        generator = torch.Generator().manual_seed(3)
        weights = {}
        for layer in range(3):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            weights[f"{name}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(32, 4, generator=generator)
        save_file(weights, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        (place / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
        return place

    def test_without_peft_it_is_named(self, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"adapter \(PEFT\) on .*pip install peft"):
            l2.load_model(adapter, device="cpu")

    def test_beside_weights_it_is_refused(self, base: Path, adapter: Path) -> None:
        for file in adapter.iterdir():
            shutil.copy(file, base)
        for backend in ("bridge", *(["hooked"] if models.HAS_HOOKED else [])):
            with pytest.raises(ValueError, match="a model and an adapter"):
                l2.load_model(base, backend=backend, device="cpu")  # type: ignore[arg-type]

    @pytest.mark.parametrize("backend", ["bridge", *(["hooked"] if models.HAS_HOOKED else [])])
    def test_with_peft_it_is_merged(self, base: Path, adapter: Path, backend: Any) -> None:
        pytest.importorskip("peft")
        hf_model = plain(base)
        lora = load_file(adapter / "adapter_model.safetensors")
        for layer, block in enumerate(hf_model.model.layers):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            block.self_attn.q_proj.weight.data += 8 / 4 * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
        assert_same(l2.load_model(adapter, backend=backend, device="cpu"), hf_model, hf_model.model.layers)

    def test_one_of_another_model_is_refused(self, adapter: Path, tmp_path: Path) -> None:
        pytest.importorskip("peft")
        other = llama(tmp_path / "other", hidden_size=48)
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other)}))
        with pytest.raises(ValueError, match="doesn't fit its base"):
            l2.load_model(adapter, device="cpu")

    def test_one_that_names_no_base_is_refused(self, adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="set base_model_name_or_path"):
            l2.load_model(adapter, device="cpu")


_EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
SEEING = {
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**SMALL, "head_dim": 8, "sliding_window": 16},
        vision_config=_EYES | {"patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
    ),
    "llava": lambda: transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SMALL),
        vision_config=transformers.CLIPVisionConfig(**_EYES, patch_size=14),
        image_token_index=5,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**SMALL, sliding_window=None),
        vision_config=transformers.PixtralVisionConfig(**_EYES, patch_size=14, head_dim=16),
        image_token_index=5,
    ),
}


@pytest.mark.parametrize("name", slow_but(["gemma3"], SEEING))
def test_of_a_model_that_sees_the_text_part_is_loaded_and_nothing_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = save(SEEING[name](), tmp_path / "m", AutoModelForImageTextToText)
    run: list[Any] = []

    def caught(*call: Any, **_: Any) -> Any:
        run.append(call)
        raise AssertionError(f"a command was run: {call}")

    for command in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, command, caught)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    model = l2.load_model(place, device="cpu")
    assert not run
    whole = plain(place, AutoModelForImageTextToText)
    assert_same(model, whole, whole.model.language_model.layers)
    assert l2.selfcheck(model).passed


def test_a_text_part_that_isnt_a_model_alone_is_refused(tmp_path: Path) -> None:
    config = transformers.Qwen2VLConfig(
        text_config={**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    )
    place = save(config, tmp_path / "m", AutoModelForImageTextToText)
    with pytest.raises(l2.errors.Unsupported, match="no causal model of its own"):
        l2.load_model(place, device="cpu")


def test_weights_elsewhere_are_named(tmp_path: Path) -> None:
    model = l2.load_model(llama(tmp_path / "m"), device="cpu")
    model.original_model.model.layers[1].to("meta")
    with pytest.raises(l2.errors.Unsupported, match="placeholders on 'meta'"):
        l2.collect(model, [[5, 6, 7]])


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_weights_offloaded_by_accelerate_are_named(how: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = plain(llama(tmp_path / "m"))
    extra = {"offload_dir": str(tmp_path / "off")} if how == "disk_offload" else {}
    hf_model = getattr(accelerate, how)(hf_model, execution_device=torch.device("cpu"), **extra)
    model = TransformerBridge.boot_transformers("m", hf_model=hf_model, tokenizer=models.tokenizer())
    with pytest.raises(l2.errors.Unsupported, match="offloaded by accelerate"):
        l2.collect(model, [[5, 6, 7]])


_LAYERS = {"num_hidden_layers": 4}
SHARING = {
    "gemma4, two layers share keys and values": lambda: transformers.Gemma4TextConfig(
        **SMALL | _LAYERS,
        head_dim=8,
        global_head_dim=8,
        sliding_window=16,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=models.VOCABULARY,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **{k: v for k, v in SMALL.items() if k != "max_position_embeddings"} | _LAYERS,
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "lfm2": lambda: transformers.Lfm2Config(**SMALL | _LAYERS, layer_types=["conv", "full_attention"] * 2),
}


@pytest.mark.parametrize("name", slow_but(["lfm2"], SHARING))
def test_layers_that_share_or_recur_are_right(name: str, tmp_path: Path) -> None:
    model = l2.load_model(save(SHARING[name](), tmp_path / "m"), device="cpu")
    checked = l2.selfcheck(model)
    assert checked.passed and checked.compared, str(checked)
    prompts = [[5, 290, 17], [3, 250, 8, 19, 4, 77, 12]]
    alone = [l2.generate(model, [prompt], max_new_tokens=6, ignore_eos=True)[0].tokens for prompt in prompts]
    together = [done.tokens for done in l2.generate(model, prompts, max_new_tokens=6, ignore_eos=True)]
    assert [list(tokens) for tokens in alone] == [list(tokens) for tokens in together]


def test_a_model_without_a_cache_of_keys_is_refused_where_it_would_decode(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        vocab_size=models.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.15
    )
    model = l2.load_model(save(config, tmp_path / "m"), device="cpu")
    with pytest.raises(l2.errors.Unsupported):
        l2.generate(model, [[5, 6, 7]], max_new_tokens=2)


# GGUF


@pytest.mark.parametrize(
    ("architecture", "config", "options"),
    [
        ("starcoder2", transformers.Starcoder2Config, {"use_bias": True}),
        ("gemma2", transformers.Gemma2Config, {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
        ("gemma3", transformers.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    ],
)
def test_a_gguf_file_of_another_architecture_is_the_model_in_it(
    architecture: str, config: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Its configuration names no architecture: the class is that of the model which was read."""
    hf_model = random_model(config, **options)
    tiny_gguf.write_model(tmp_path / "model.gguf", hf_model, architecture)
    model = l2.load_model(tmp_path / "model.gguf")
    tokens = [1 + token % 255 for token in TOKENS[:40]]  # 0 is padding, of norm 0
    norms, _ = norms_and_logits(hf_model, hf_model.model.layers, tokens)
    its_norms = l2.collect(model, [tokens], progress=False)[0].l2_norms
    assert ((its_norms - norms).abs() / norms).max() < 1e-5
    assert l2.selfcheck(model).passed


@pytest.mark.parametrize(
    ("typed", "meant"), [("tinyreasoner", "tiny-reasoner"), ("tiny_reasoner", "tiny-reasoner"), ("smolm2", "smollm2")]
)
def test_a_short_name_that_is_nearly_right_is_told_the_right_one(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean '{meant}'\?$"):
        l2.load_model(typed)


LEFT_OUT: dict[str, tuple[str, Any, dict[str, Any], dict[str, float | str]]] = {
    "linear": ("qwen2", transformers.Qwen2Config, rope("linear", factor=4.0), {"rope.scaling.type": "linear"}),
    "yarn": (
        "qwen3",
        transformers.Qwen3Config,
        {"head_dim": 8, **rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0)},
        {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0},
    ),
    "linear, of full attention": (
        "gemma3",
        transformers.Gemma3TextConfig,
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            },
        },
        {"rope.scaling.type": "linear", "rope.freq_base_swa": 500.0},
    ),
    "the window": ("starcoder2", transformers.Starcoder2Config, {"sliding_window": 8}, {}),
    "the base": (
        "starcoder2",
        transformers.Starcoder2Config,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope.freq_base": 100.0},
    ),
    "the width of heads": ("qwen3", transformers.Qwen3Config, {"head_dim": 16}, {}),
    "the softcaps": (
        "gemma2",
        transformers.Gemma2Config,
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
        {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    ),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_transformers_leaves_out_of_a_gguf_header_is_taken_over(what: str, tmp_path: Path) -> None:
    """Against the model that the file was written from: the file read again by the same reader would agree with itself."""
    architecture, config, options, entries = LEFT_OUT[what]
    entries = {"rope.scaling.factor": 4.0, **entries} if "rope.scaling.type" in entries else entries
    hf_model = random_model(config, **options)
    tiny_gguf.write_model(tmp_path / "model.gguf", hf_model, architecture, entries=entries)
    tokens = [1 + token % 255 for token in TOKENS[:60]]
    norms, logits = norms_and_logits(hf_model, hf_model.model.layers, tokens)
    model = l2.load_model(tmp_path / "model.gguf")
    its_norms = l2.collect(model, [tokens], progress=False)[0].l2_norms
    assert ((its_norms - norms).abs() / norms).max() < 1e-5
    with torch.no_grad():
        assert (model(torch.tensor([tokens]))[0] - logits).abs().max() < 1e-3 * logits.std()


@pytest.mark.parametrize(
    ("entries", "tensors", "named"),
    [
        ({}, {"rope_freqs.weight": np.ones(4, dtype=np.float32)}, "rope_freqs.weight"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}, "qwen2.rope.scaling.type = 'longrope'"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1},
            {},
            "qwen2.rope.scaling.yarn_log_multiplier",
        ),
        ({"attention.sliding_window": 16}, {}, "qwen2.attention.sliding_window = 16"),
        ({"attention.key_length": 16}, {}, "qwen2.attention.key_length = 16"),
        ({"attention.value_length": 16}, {}, "qwen2.attention.value_length = 16"),
        ({"rope.dimension_count": 4}, {}, "qwen2.rope.dimension_count = 4"),
        ({"expert_count": 8}, {}, "qwen2.expert_count = 8"),
        ({"logit_scale": 0.25}, {}, "qwen2.logit_scale = 0.25"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_gguf_header_says_and_the_model_would_not_have_is_refused_by_name(
    entries: dict[str, Any], tensors: dict[str, Any], named: str, tmp_path: Path
) -> None:
    tiny_gguf.write_model(
        tmp_path / "model.gguf", random_model(transformers.Qwen2Config), "qwen2", entries=entries, tensors=tensors
    )
    with pytest.raises(NotImplementedError, match=f"{re.escape(named)}.*safetensors"):
        l2.load_model(tmp_path / "model.gguf")
