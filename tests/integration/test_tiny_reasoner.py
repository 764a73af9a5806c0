"""The model that comes with the library, and its SAEs: they do what their card says."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_l2norm as l2
from tests import models
from tl_l2norm.models.backends import backend_of
from tl_l2norm.tasks.problems import FAMILIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "assets" / "tiny_reasoner"
CELLS = json.loads((FOLDER / "results.json").read_text())["cells"]
BACKENDS = ["bridge", *(["hooked"] if models.HAS_HOOKED else [])]


@pytest.fixture(scope="module")
def plain() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return l2.load_model("tiny-reasoner", device="cpu")


def unlikely(right: int, n: int, share: float) -> float:
    """Probability of so few or fewer out of n."""
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(right + 1))


# The model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["think", "direct"])
def test_both_backends_give_the_logits_of_hugging_face(plain: Any, backend: Any, mode: Any) -> None:
    model = l2.load_model("tiny-reasoner", backend=backend, device="cpu")
    for problem in l2.make_mixture(5, families="compact", levels=[5], split="test"):
        prompt = l2.chat_prompt(model.tokenizer, problem.question, mode=mode)
        tokens = torch.tensor([[*prompt.tokens, *model.tokenizer(problem.thinking).input_ids]])
        with torch.no_grad():
            assert (model(tokens) - plain(tokens).logits).abs().max() < 1e-3


@pytest.mark.parametrize("mode", ["think", "direct"])
@pytest.mark.parametrize("family", ["modular", "swaps", "circuit", "pointers", "maximum"])
def test_it_solves_fresh_problems_as_often_as_its_card_says(reasoner: Any, family: str, mode: Any) -> None:
    """30 problems at a middle and 30 at the highest trained level, of another seed than the card's."""
    for level in (4, 8):
        cell = next(c for c in CELLS if (c["family"], c["level"], c["mode"]) == (family, level, mode))
        problems = l2.make_problems(family, 30, level=level, seed=77, split="test")
        prompts = [l2.chat_prompt(reasoner.tokenizer, p.question, mode=mode) for p in problems]
        out = l2.generate(reasoner, prompts, max_new_tokens=128, batch_size=30, record=False, progress=False)
        right = sum(bool(l2.is_correct(p, c.text)) for p, c in zip(problems, out, strict=True))
        share = cell["right"] / cell["n"]
        assert unlikely(right, 30, max(share - 0.01, 0.0)) > 1e-4, f"{right} of 30, the card says {share:.1%}"
        assert unlikely(30 - right, 30, max(1 - share - 0.01, 0.0)) > 1e-4 or mode == "think"


def test_the_modes_are_those_of_qwen3(reasoner: Any) -> None:
    think, direct = (l2.chat_prompt(reasoner.tokenizer, "mod 10: 7A+5B*3", mode=mode) for mode in ("think", "direct"))
    assert think.text == "<|im_start|>user\nmod 10: 7A+5B*3<|im_end|>\n<|im_start|>assistant\n"
    assert direct.text == think.text + "<think>\n\n</think>\n\n"
    out = l2.generate(reasoner, [think, direct], max_new_tokens=60, progress=False)
    assert out[0].text == "<think>\n7A+5=2B*3=6\n</think>\n\n6" and out[0].finish_reason == "stop"
    assert set(out[0].trace.segments[out[0].trace.prompt_len :]) == {"think", "answer"}
    assert len(out[1].text) == 1


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(["modular", "swaps", "circuit", "pointers", "maximum"]), seed=st.integers(0, 2**30), data=st.data()
)
def test_the_tokenizer_gives_every_problem_back(family: str, seed: int, data: Any) -> None:
    tokenizer = _tokenizer()
    level = data.draw(st.integers(1, FAMILIES[family].levels))
    (problem,) = l2.make_problems(family, 1, level=level, seed=seed)
    prompt = l2.chat_prompt(tokenizer, problem.question)
    text = f"{prompt.text}<think>\n{problem.thinking}\n</think>\n\n{problem.answer}<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_files_are_small_and_in_half_precision() -> None:
    from safetensors.torch import load_file

    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    assert sum(file.stat().st_size for file in (FOLDER / "saes").rglob("*.safetensors")) <= 16e6


# Its training


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module train.py, as its command line would load it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("tiny_reasoner_train", FOLDER / "train.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tiny_reasoner_train", module)
    spec.loader.exec_module(module)
    return module


def test_no_test_problem_is_trained_on(recipe: Any) -> None:
    config = recipe.Config()
    seen = {p.question: p.family for step in range(0, 2000, 50) for p in recipe.draw_batch(config, step)}
    hashes = [int(hashlib.sha256(f"{family}\n{question}".encode()).hexdigest()[:16], 16) for question, family in seen.items()]
    assert len(hashes) > 2000 and not any(value % 5 == 0 for value in hashes)
    for family in config.families:
        held_out = {p.question for p in l2.make_problems(family, 100, level=6, split="test")}
        assert not held_out & seen.keys()


def test_levels_beyond_the_common_ones_are_seldom_drawn(recipe: Any) -> None:
    config = recipe.Config()
    levels = [p.level for step in range(1000, 3000, 10) for p in recipe.draw_batch(config, step) if p.family == "swaps"]
    drawn = [levels.count(level) for level in (9, 10, 12)]
    assert drawn[0] > 3 * drawn[1] > 0 and drawn[1] > 5 * drawn[2]


def test_settling_draws_the_hardest_level_of_families_that_lack_it(recipe: Any, tmp_path: Path) -> None:
    settle = importlib.import_module("settle")
    settler = settle.Settler(recipe.Config(), settle.Settling(looked_at=2), FOLDER, tmp_path, 1)
    settler.thought_out = {"modular": 0.74, "swaps": 0.76, "circuit": 0.0, "pointers": 1.0}
    hardest = Counter()
    for settler.step in range(120):
        problems = settler.draw()
        assert all(problem.split == "train" for problem in problems)
        hardest.update(p.family for p in problems if p.level == FAMILIES[p.family].levels)
    assert hardest["modular"] > 0 and hardest["circuit"] > 0 and hardest["maximum"] > 0
    assert hardest["swaps"] == hardest["pointers"] == 0


@pytest.mark.slow
def test_shipped_weights_are_right_often_not_always_at_the_hardest_levels(recipe: Any, tmp_path: Path) -> None:
    settle = importlib.import_module("settle")
    settler = settle.Settler(recipe.Config(), settle.Settling(), FOLDER, tmp_path, 1)
    assert settler.look(), settler.thought_out
    hardest = [cell for cell in CELLS if cell["mode"] == "think" and cell["level"] == FAMILIES[cell["family"]].levels]
    assert all(0.6 <= cell["right"] / cell["n"] <= 0.9 for cell in hardest if cell["family"] != "maximum")


@pytest.mark.slow
def test_thirty_steps_lower_the_loss_and_a_resumed_run_is_the_same_to_the_bit(recipe: Any, tmp_path: Path) -> None:
    config = recipe.Config(steps=30, decay=10, batch=8, curriculum=60, save_every=15, test_every=1000)
    through, stopped, resumed = (tmp_path / name for name in ("through", "stopped", "resumed"))
    for folder in (through, stopped, resumed):
        folder.mkdir()
    whole = recipe.Trainer(config, through, 2)
    losses = [whole.train_step()["think_loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    first = recipe.Trainer(config, stopped, 1)
    for _ in range(15):
        first.train_step()
    first.save_checkpoint()
    second = recipe.Trainer(config, stopped, 2)
    second.load_checkpoint()
    assert [second.train_step()["think_loss"] for _ in range(15)] == losses[15:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    other = recipe.Trainer(recipe.Config(steps=30, decay=10, batch=4), stopped, 1)
    with pytest.raises(SystemExit, match="another configuration"):
        other.load_checkpoint()


# Its SAEs


@pytest.fixture(scope="module")
def saes() -> Any:
    return l2.load_saes("tiny-reasoner")


def test_each_sae_explains_fresh_text_as_its_table_says(reasoner: Any, saes: Any) -> None:
    """What the model writes to 40 problems of another seed, in both modes; the interval of the table, widened by one point."""
    problems = l2.make_mixture(40, families="compact", levels=[2, 4, 6, 8], seed=91, split="test")
    prompts = [l2.chat_prompt(reasoner.tokenizer, p.question, mode=mode) for p in problems for mode in ("think", "direct")]
    out = l2.generate(reasoner, prompts, max_new_tokens=128, batch_size=40, record=False, progress=False)
    table = {entry["layer"]: entry for entry in json.loads((FOLDER / "saes" / "results.json").read_text())}
    assert list(saes) == list(table) == list(range(backend_of(reasoner).n_layers))
    for entry in l2.saes.evaluate_saes(reasoner, saes, out, sink_ratio=20.0).to_dict("records"):
        claimed = table[entry["layer"]]
        assert claimed["low"] - 0.01 < entry["explained_variance"], entry["layer"]
        assert claimed["d_sae"] == entry["d_sae"] >= 8 * 128 and entry["l0"] == pytest.approx(claimed["l0"], abs=1.0)


def test_an_sae_is_refused_at_another_layer(reasoner: Any, saes: Any) -> None:
    for layer in saes:
        wrong = (layer + 1) % len(saes)
        with pytest.raises(ValueError, match=f"the SAE for layer {wrong} doesn't fit: it is of blocks.{layer}.hook_resid_post"):
            l2.collect(reasoner, [[5, 6, 7]], saes={wrong: saes[layer]}, progress=False)


def test_features_stand_beside_the_norms_of_a_thinking_run(reasoner: Any, saes: Any) -> None:
    prompt = l2.chat_prompt(reasoner.tokenizer, "row a3b1c5d2e4: A12B35 c")
    out = l2.generate(reasoner, [prompt], saes=saes, max_new_tokens=60, progress=False)
    (again,) = l2.collect(reasoner, out, saes={9: saes[9]}, progress=False)
    acts = out[0].trace.features[9]
    assert len(acts) == len(out[0].trace) and out[0].trace.features.keys() == saes.keys()
    assert (acts.dense() - again.features[9].dense()).abs().max() < 1e-3 * acts.values.max()
    assert "tiny-reasoner" in acts.sae
