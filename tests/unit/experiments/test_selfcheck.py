import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import tl_l2norm as l2
from tests import models, tiny_folders
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.lean import lean


def test_a_sound_model_passes(model: Any) -> None:
    outcome = l2.selfcheck(model)
    assert outcome.passed, str(outcome)
    ours = ["norms", "cache", "batch", "logits", "logit lens"]
    assert [c.name for c in outcome.checks] == [
        *ours,
        "file: tokenizer",
        "file: norms",
        "file: logits",
        "file: turn ends",
        "hooks left",
    ]
    assert outcome.compared
    assert "pass" in str(outcome) and "<table" in outcome._repr_html_()


def test_a_model_whose_states_depend_on_the_length_of_the_pass_fails_where_it_should(tiny: Any) -> None:
    def odd(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor * (1 + 0.1 * tensor.shape[1])

    backend_of(tiny).resid_post(0).add_hook(odd)
    try:
        outcome = l2.selfcheck(tiny)
    finally:
        tiny.reset_hooks()
    failed = {c.name for c in outcome.checks if not c.passed}
    assert {"cache", "batch"} <= failed and "logits" not in failed and "hooks left" not in failed
    assert not outcome.passed and "FAIL" in str(outcome)
    assert count_hooks(tiny) == 0


def failed(model: Any) -> set[str]:
    return {check.name for check in l2.selfcheck(model).checks if check.result == "FAIL"}


@pytest.fixture(params=["bridge", *(["hooked"] if models.HAS_HOOKED else [])])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A model of this test alone, which it may spoil."""
    return l2.load_model(tiny_folders.llama(tmp_path / "m"), backend=request.param, device="cpu")


def test_a_planted_wrong_rotation_fails(loaded: Any) -> None:
    backend = backend_of(loaded)
    if backend.name == "bridge":
        rotary = next(m for name, m in loaded.original_model.named_modules() if hasattr(m, "inv_freq"))
        rotary.inv_freq.div_(4)
    else:
        for block in loaded.blocks:
            for name in ("rotary_cos", "rotary_sin"):  # as if positions went four times as fast
                table = getattr(block.attn, name)
                setattr(block.attn, name, table[(4 * torch.arange(len(table))) % len(table)])
    assert failed(loaded) == {"file: norms", "file: logits"}


@pytest.mark.parametrize("part", ["W_out", "W_Q", "W_E"])
def test_planted_wrong_weights_fail(loaded: Any, part: str) -> None:
    module = {"W_out": loaded.blocks[1].mlp, "W_Q": loaded.blocks[2].attn, "W_E": loaded.embed}[part]
    next(module.parameters()).data.mul_(1.1)
    assert {"file: norms", "file: logits"} <= failed(loaded)


@pytest.mark.parametrize("ends", [[5], [2, 5], None])
def test_a_planted_wrong_end_of_turn_fails(loaded: Any, ends: list[int] | None) -> None:
    backend = backend_of(loaded)
    generation = loaded.original_model if backend.name == "bridge" else loaded
    generation.generation_config = copy.deepcopy(generation.generation_config)
    generation.generation_config.eos_token_id = ends
    if ends is None:
        loaded.tokenizer.eos_token = "the"
    assert failed(loaded) == {"file: turn ends"}


def test_a_tokenizer_with_another_end_fails(loaded: Any) -> None:
    loaded.tokenizer.add_special_tokens({"eos_token": "<odd>"})
    assert "file: turn ends" in failed(loaded)


def _first_token(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_end|> $A", special_tokens=[("<|im_end|>", 2)]
    )


def _lowercase(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def _template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("change", [_first_token, _lowercase, _template])
def test_a_planted_wrong_tokenizer_fails(loaded: Any, change: Any) -> None:
    loaded.tokenizer = copy.deepcopy(loaded.tokenizer)
    change(loaded.tokenizer)
    assert failed(loaded) == {"file: tokenizer"}


def _bos_check(model: Any) -> Any:
    return next(check for check in l2.selfcheck(model).checks if check.name == "file: tokenizer")


@pytest.mark.parametrize("planted", [False, True])
def test_a_beginning_that_the_files_do_not_add_is_told_or_fails(loaded: Any, planted: bool) -> None:
    """TransformerLens turns BOS on, and marks it so; a step that somebody put there isn't marked."""
    bos, begin = loaded.tokenizer.bos_token_id, loaded.tokenizer.bos_token
    loaded.tokenizer = copy.deepcopy(loaded.tokenizer)
    loaded.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, bos)]
    )
    loaded.tokenizer.__dict__["_add_bos_token"] = not planted
    check = _bos_check(loaded)
    assert loaded.tokenizer("a").input_ids[0] == bos
    assert check.passed is not planted and ("added by TransformerLens" in check.meaning) is not planted


def test_a_tokenizer_of_a_larger_vocabulary_fails_and_leaves_the_other_rows(loaded: Any) -> None:
    words = Tokenizer(WordLevel({"<unk>": 60_000, "a": 60_001}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="a")
    rows = {check.name: check for check in l2.selfcheck(loaded).checks}
    assert rows["file: norms"].passed and rows["file: tokenizer"].result == "FAIL"
    for name in ("norms", "cache", "batch", "logits", "logit lens"):
        assert rows[name].result == "FAIL" and "gives token 60001" in rows[name].meaning


def test_a_model_whose_decoding_is_refused_fails_and_leaves_the_other_rows(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blinded(forward: Any) -> Any:
        def blind(self: Any, tokens: Any, mask: Any, *, cache: Any = None, **options: Any) -> Any:
            return forward(self, tokens, mask[:, -tokens.shape[1] :], **options)

        return blind

    backend = backend_of(loaded)
    for kind in {type(backend), type(lean(backend, backend.identity()))}:
        monkeypatch.setattr(kind, "forward", blinded(kind.forward))
    checks = {check.name: check for check in l2.selfcheck(loaded).checks}
    assert {name for name, check in checks.items() if check.result == "FAIL"} == {"cache"}
    assert "decoding with a cache" in checks["cache"].meaning


@pytest.mark.parametrize("window", [300, 450, 600])
def test_a_window_that_the_file_lacks_is_reached(tmp_path: Path, window: int) -> None:
    options: dict[str, Any] = {**tiny_folders.SMALL, "max_position_embeddings": 1024}
    place = tiny_folders.save(transformers.MistralConfig(**options, sliding_window=window), tmp_path / "m")
    loaded = [l2.load_model(place, backend=b, device="cpu") for b in ("bridge", *(["hooked"] if models.HAS_HOOKED else []))]
    tiny_folders.edit_config(place, sliding_window=None)
    for model in loaded:
        assert failed(model) == {"file: norms", "file: logits"}


def test_what_has_no_file_is_not_compared(tiny: Any) -> None:
    outcome = l2.selfcheck(l2.models.random_twin(tiny))
    rows = {check.name: check for check in outcome.checks if check.name.startswith("file: ")}
    assert len(rows) == 4 and all(check.result == "not compared" and not check.passed for check in rows.values())
    assert outcome.passed and not outcome.compared
    assert str(outcome).count("not compared") == 4 and "its weights were drawn" in str(outcome)


def test_files_that_are_gone_are_not_compared(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    outcome = l2.selfcheck(loaded)
    assert not outcome.compared and outcome.passed


class TestModelsThatTheUserLoaded:
    def test_by_the_bridge_from_a_folder(self, tmp_path: Path) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        place = tiny_folders.llama(tmp_path / "m")
        model = TransformerBridge.boot_transformers(str(place), device="cpu")
        outcome = l2.selfcheck(model)
        assert outcome.passed and outcome.compared, str(outcome)
        model.original_model.model.layers[0].mlp.down_proj.weight.data.mul_(1.1)
        assert {"file: norms", "file: logits"} <= failed(model)

    def test_of_a_model_made_in_memory(self, tmp_path: Path) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        hf_model = tiny_folders.plain(tiny_folders.llama(tmp_path / "m"))
        hf_model.config._name_or_path = ""
        model = TransformerBridge.boot_transformers("x", hf_model=hf_model, tokenizer=models.tokenizer(), device="cpu")
        outcome = l2.selfcheck(model)
        assert not outcome.compared and "doesn't say where it was loaded from" in str(outcome)

    @pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
    def test_a_hooked_transformer_of_its_own_making(self) -> None:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        cfg = HookedTransformerConfig(n_layers=2, d_model=32, n_ctx=64, d_head=8, d_vocab=50, act_fn="relu", d_mlp=64, seed=0)
        outcome = l2.selfcheck(HookedTransformer(cfg).eval())
        assert not outcome.compared and outcome.passed
