"""Optimisation pressure in closed form is what autograd finds on the plain model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor, nn

import tl_l2norm as l2
from tests import models, oracles
from tl_l2norm.core.measured import PRESSURES
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.final_norm import FinalNorm, read_final_norm
from tl_l2norm.recording.pressure import Head, pressures

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening comes and the stars are out.",
    "Two and two make four.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17",  # whose next tokens are nearly sure
]


def ids(text: str) -> list[int]:
    return models.tokenizer()(text, add_special_tokens=False).input_ids


def truth(plain: Any, tokens: list[int]) -> dict[str, Tensor]:
    """Of every position but the last, by autograd from the loss to the last layer's output, and to the final norm's."""
    held: list[Tensor] = []
    normed: list[Tensor] = []

    def cut(_module: Any, _args: Any, out: Any) -> Any:
        stream = (out if isinstance(out, Tensor) else out[0]).detach().requires_grad_()
        held.append(stream)
        return stream if isinstance(out, Tensor) else (stream, *out[1:])

    norm = plain.transformer.ln_f if hasattr(plain, "transformer") else plain.model.norm
    handles = [oracles.layers_of(plain)[-1].register_forward_hook(cut)]
    handles.append(norm.register_forward_hook(lambda _module, _args, out: normed.append(out)))
    try:
        logits = plain(torch.tensor([tokens]), use_cache=False).logits[0, :-1].double()
    finally:
        for handle in handles:
            handle.remove()
    loss = nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    gradient, outer = torch.autograd.grad(loss.sum(), [*held, *normed])  # each position's loss is of its own state alone
    norms = held[0].detach()[0].double().norm(dim=-1)
    return {
        "loss": loss.detach(),
        "pressure": gradient[0, :-1].double().norm(dim=-1),
        "pull": outer[0, :-1].double().norm(dim=-1),
        "l2_norm": norms[:-1],
        "next_l2_norm": norms[1:],
    }


def assert_close(frame: pd.DataFrame, expected: dict[str, Tensor], tolerance: float) -> None:
    for name, values in expected.items():
        ours = torch.tensor(frame[name].to_numpy()).double()
        assert ((ours - values).abs() <= tolerance * values.abs() + 1e-9).all(), name


def test_the_closed_form_is_autograd_on_plain_hugging_face(model: Any, plain: Any) -> None:
    table = l2.recording.optimisation_pressure(model, [ids(text) for text in TEXTS], batch_size=3)  # in a padded batch
    assert tuple(table.columns) == PRESSURES.names
    assert table.sequence.drop_duplicates().tolist() == [0, 1, 2]
    for i, text in enumerate(TEXTS):
        own, tokens = table[table.sequence == i], ids(text)
        assert own.position.tolist() == list(range(len(tokens) - 1))
        assert own.token_id.tolist() == tokens[1:] and own.state_token_id.tolist() == tokens[:-1]
        assert "".join(own.token) == models.tokenizer().decode(tokens)[len(models.tokenizer().decode(tokens[:1])) :]
        assert_close(own, truth(plain, tokens), 1e-4)
        assert own.p_true.tolist() == pytest.approx(torch.tensor(own.loss.to_numpy()).neg().exp().tolist(), rel=1e-4)


def test_a_sequence_alone_is_the_same_in_a_batch(model: Any) -> None:
    together = l2.recording.optimisation_pressure(model, [ids(text) for text in TEXTS], batch_size=3)
    for i, text in enumerate(TEXTS):
        alone = l2.recording.optimisation_pressure(model, ids(text))
        own = together[together.sequence == i].reset_index(drop=True)
        exact = ["position", "token_id", "token", "segment", "is_sink"]
        pd.testing.assert_frame_equal(own[exact], alone[exact])
        for name in ("loss", "pressure", "pull", "l2_norm", "next_l2_norm"):
            assert ((own[name] - alone[name]).abs() <= 1e-4 * alone[name].abs()).all()


def test_norms_and_sinks_are_those_of_collect(model: Any) -> None:
    traces = l2.collect(model, [ids(text) for text in TEXTS], prompt_lens=[9, 4, 6])
    table = l2.recording.optimisation_pressure(model, traces)  # which know their prompts
    last = l2.to_frame(traces)
    last = last[last.layer == backend_of(model).n_layers - 1].set_index(["sequence", "position"])
    collected = last.loc[list(zip(table.sequence, table.position, strict=True))].reset_index()
    assert ((table.l2_norm - collected.l2_norm).abs() <= 1e-5 * table.l2_norm).all()
    assert (table.is_sink == collected.is_sink).all()
    following = last.loc[list(zip(table.sequence, table.position + 1, strict=True))].reset_index()
    assert ((table.next_l2_norm - following.l2_norm).abs() <= 1e-5 * table.next_l2_norm).all()
    assert (table.next_is_sink == following.is_sink).all()


def test_only_tokens_of_the_response_count(tiny: Any) -> None:
    tokens = ids(TEXTS[0])
    whole = l2.recording.optimisation_pressure(tiny, tokens)
    table = l2.recording.optimisation_pressure(
        tiny, [tokens, tokens], prompt_lens=[7, 1], labels=[{"mode": "a"}, {"mode": "b"}]
    )
    own = table[table["mode"] == "a"]
    assert own.position.tolist() == list(range(6, len(tokens) - 1))
    assert set(table.segment) == {"answer"} and set(whole.segment) == {"prompt"}
    assert ((own.pressure.to_numpy() - whole.pressure[6:].to_numpy()) ** 2).max() < 1e-10
    assert table[table["mode"] == "b"].position.tolist() == list(range(len(tokens) - 1))


def test_texts_chats_and_completions_are_taken(smollm2: Any) -> None:
    prompt = [{"role": "user", "content": "What is 2 + 2?"}]
    completion = l2.generate(smollm2, [prompt], max_new_tokens=6)[0]
    chat = [*prompt, {"role": "assistant", "content": completion.text}]
    generated = l2.recording.optimisation_pressure(smollm2, completion)
    taught = l2.recording.optimisation_pressure(smollm2, [chat])
    n = len(generated)
    assert generated.token_id.tolist() == list(completion.tokens[:-1])
    assert taught.token_id[:n].tolist() == generated.token_id.tolist()
    assert ((taught.pressure[:n] - generated.pressure).abs() < 1e-3 * generated.pressure).all()
    assert len(l2.recording.optimisation_pressure(smollm2, "Two and two", prepend_bos=True)) == 3


@pytest.mark.parametrize("cap", [5.0, 0.5])
def test_a_soft_cap_on_logits(cap: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.3,
        final_logit_softcapping=cap,
    )
    plain = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    nn.init.normal_(plain.model.norm.weight, std=0.5)  # Gemma's gain is 1 + w
    plain.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = l2.load_model(tmp_path, device="cpu")
    assert backend_of(model).logit_cap == cap
    tokens = [5, 290, 17, 3, 3, 250]
    assert_close(l2.recording.optimisation_pressure(model, tokens), truth(plain, tokens), 1e-4)
    stream = torch.randn(3, 32)
    with torch.no_grad():
        raw = plain.lm_head(plain.model.norm(stream))
        assert (backend_of(model).unembed(stream) - cap * torch.tanh(raw / cap)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(tiny_case: models.Case, dtype: torch.dtype) -> None:
    model = l2.load_model(models.folder(tiny_case.architecture), backend=tiny_case.backend, dtype=dtype, device="cpu")
    backend, tokens = backend_of(model), ids(TEXTS[1])
    table = l2.recording.optimisation_pressure(model, tokens)
    with torch.no_grad(), backend.capture_stream(backend.n_layers - 1) as streams:
        backend.forward(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.long))
    plain = models.hugging_face(tiny_case.architecture)  # the head of these weights, rounded, on the states as they are
    norm, head = (plain.transformer.ln_f, plain.lm_head) if hasattr(plain, "transformer") else (plain.model.norm, plain.lm_head)
    weights = {name: value.detach().to(dtype).float() for name, value in norm.named_parameters()}
    state = streams[0][0, :-1].float().requires_grad_()
    normed = torch.func.functional_call(norm, weights, (state,))
    logits = normed @ head.weight.detach().to(dtype).float().T
    loss = nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    gradient, outer = torch.autograd.grad(loss.sum(), [state, normed])
    expected = {"loss": loss.detach().double(), "pressure": gradient.norm(dim=-1).double(), "pull": outer.norm(dim=-1).double()}
    assert_close(table, expected, 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_folded_and_centred_weights(architecture: str) -> None:
    model = l2.load_model(models.folder(architecture), device="cpu")
    model.enable_compatibility_mode(no_processing=False)
    with pytest.warns(UserWarning, match="are centred") if architecture == "gpt2" else nullcontext():
        table = l2.recording.optimisation_pressure(model, ids(TEXTS[0]))
    expected = truth(models.hugging_face(architecture), ids(TEXTS[0]))
    if architecture == "gpt2":
        del expected["l2_norm"], expected["next_l2_norm"]  # the mean is gone from them
    del expected["pull"]  # the gain is in W_U, so that y is without it
    assert_close(table, expected, 1e-3)


def test_many_tokens_are_taken_some_at_a_time(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = l2.recording.optimisation_pressure(tiny, [ids(text) for text in TEXTS])
    monkeypatch.setattr("tl_l2norm.recording.pressure._AT_ONCE", 2 * models.VOCABULARY)  # two tokens, a part of the vocabulary
    parts = l2.recording.optimisation_pressure(tiny, [ids(text) for text in TEXTS])
    assert ((whole.pressure - parts.pressure).abs() <= 1e-4 * whole.pressure).all()


def test_a_vocabulary_of_two_by_hand() -> None:
    """h = (3, 4), no norm, W_U = identity: z = (3, 4), p = (1/(1+e), e/(1+e)), dL/dh = p - onehot."""
    none = FinalNorm(kind="none", gain=torch.ones(2), bias=torch.zeros(2), eps=0.0)
    head = Head(norm=none, W_U=torch.eye(2), b_U=torch.zeros(2))
    first, second = 1 / (1 + math.e), math.e / (1 + math.e)
    read = pressures(head, torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([0, 1]))
    assert read.p_true.tolist() == pytest.approx([first, second])
    assert read.loss.tolist() == pytest.approx([math.log(1 + math.e), math.log(1 + math.e) - 1])
    assert read.pressure.tolist() == pytest.approx([math.sqrt(2) * second, math.sqrt(2) * first])
    assert read.pull.tolist() == read.pressure.tolist()
    # RMSNorm: rms = sqrt(12.5), y = h / rms; the gradient (-q, q) loses its part along (0.6, 0.8), the unit vector of h
    rms = math.sqrt(12.5)
    q = 1 / (1 + math.exp(-1 / rms))
    normed = Head(
        norm=FinalNorm(kind="rms", gain=torch.ones(2), bias=torch.zeros(2), eps=0.0), W_U=torch.eye(2), b_U=torch.zeros(2)
    )
    read = pressures(normed, torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    along = q * (0.8 - 0.6)
    assert read.pressure.tolist() == pytest.approx([math.sqrt(2 * q**2 - along**2) / rms])
    assert read.pull.tolist() == pytest.approx([math.sqrt(2) * q])
    # ten times the state: the same y, p and pull, a tenth of the pressure
    large = pressures(normed, torch.tensor([[30.0, 40.0]]), torch.tensor([0]))
    assert large.pull.tolist() == pytest.approx(read.pull.tolist())
    assert large.pressure.tolist() == pytest.approx([read.pressure.item() / 10])
    # LayerNorm of two numbers is (-1, 1) whatever they are: nothing pulls at them.
    flat = Head(
        norm=FinalNorm(kind="layer", gain=torch.ones(2), bias=torch.zeros(2), eps=0.0), W_U=torch.eye(2), b_U=torch.zeros(2)
    )
    assert pressures(flat, torch.tensor([[3.0, 4.0]]), torch.tensor([0])).pressure.item() == pytest.approx(0, abs=1e-6)


def test_a_sure_token_keeps_its_small_pressure() -> None:
    """1 - p is 1e-9, less than what float32 tells from 1."""
    none = FinalNorm(kind="none", gain=torch.ones(2), bias=torch.zeros(2), eps=0.0)
    gap = math.log(1e9)
    read = pressures(Head(norm=none, W_U=torch.eye(2), b_U=torch.zeros(2)), torch.tensor([[gap, 0.0]]), torch.tensor([0]))
    assert read.pressure.item() == pytest.approx(math.sqrt(2) * 1e-9, rel=1e-4)
    assert read.loss.item() == pytest.approx(1e-9, rel=1e-4)


class Rms(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.g, self.eps = nn.Parameter(torch.randn(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.g)


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
def test_a_norm_is_read_by_probing(width: int, eps: float) -> None:
    torch.manual_seed(0)
    rms, layer = Rms(width, eps), nn.LayerNorm(width, eps=eps)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    head_norm = read_final_norm(rms, width, torch.device("cpu"))
    assert head_norm.kind == "rms" and head_norm.eps == pytest.approx(eps, rel=0.01)
    assert torch.allclose(head_norm.gain, 1 + rms.g, atol=1e-5)
    head_norm = read_final_norm(layer, width, torch.device("cpu"))
    assert head_norm.kind == "layer" and head_norm.eps == pytest.approx(eps, rel=0.01)
    assert torch.allclose(head_norm.gain, layer.weight, atol=1e-5) and torch.allclose(head_norm.bias, layer.bias, atol=1e-6)
    for nothing in (nn.Identity(), None):
        assert read_final_norm(nothing, width, torch.device("cpu")).kind == "none"


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_the_gradient_through_a_norm_is_autograds(kind: str) -> None:
    torch.manual_seed(0)
    module = Rms(8, 1e-5) if kind == "rms" else nn.LayerNorm(8)
    nn.init.normal_(module.g if kind == "rms" else module.weight)
    norm = read_final_norm(module, 8, torch.device("cpu"))
    states = (3 * torch.randn(20, 8) + 2).requires_grad_()
    gradient = torch.randn(20, 8)
    (truth,) = torch.autograd.grad(module(states), states, gradient)
    assert torch.allclose(norm.pull_back(states.detach(), gradient), truth, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gains_are_read_exactly(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rms, layer = Rms(8, 1e-6).to(dtype), nn.LayerNorm(8).to(dtype)
    nn.init.normal_(layer.weight)
    assert torch.allclose(read_final_norm(rms, 8, torch.device("cpu")).gain, 1 + rms.g.float(), rtol=1e-6)
    assert torch.allclose(read_final_norm(layer, 8, torch.device("cpu")).gain, layer.weight.float(), rtol=1e-6)


def test_another_norm_is_refused_by_its_name() -> None:
    class Squash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    with pytest.raises(NotImplementedError, match="Squash"):
        read_final_norm(Squash(), 8, torch.device("cpu"))


def test_reading_the_norm_wakes_nobodys_hooks(tiny: Any) -> None:
    heard: list[str] = []
    points = [m for m in tiny.ln_final.modules() if hasattr(m, "add_hook")]
    for point in points:
        point.add_hook(lambda tensor, hook: heard.append(hook.name))
    try:
        backend_of(tiny).final_norm()
        assert heard == []
    finally:
        tiny.reset_hooks()


def test_scaled_logits_are_refused_here_and_right_in_the_logit_lens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GraniteConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=4.0,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = l2.load_model(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="it scales them"):
        l2.recording.optimisation_pressure(model, [[5, 6, 7]])
    (trace,) = l2.collect(model, [[5, 6, 7]], metrics=["output_entropy"], progress=False)
    with torch.no_grad():
        truth = torch.distributions.Categorical(logits=model(torch.tensor([[5, 6, 7]]))[0]).entropy()
    assert (trace.metrics["output_entropy"][-1] - truth).abs().max() < 1e-3


def test_a_hook_that_edits_logits_is_refused_and_stays(tiny: Any) -> None:
    def double(tensor: Tensor, hook: Any) -> Tensor:
        return 2 * tensor

    with tiny.hooks(fwd_hooks=[("unembed.hook_out", double)]), pytest.raises(ValueError, match="a hook changes them"):
        l2.recording.optimisation_pressure(tiny, [[5, 6, 7]])


@pytest.mark.parametrize(
    ("sequences", "options", "says"),
    [
        ([[5, 6], [7]], {}, "sequence 1 has one token"),
        ([[5, 6]], {"batch_size": 0}, "batch_size must be at least 1"),
        ([[5, 6]], {"labels": [{}, {}]}, "labels has 2 entries for 1 sequences"),
        ([[5, 6]], {"labels": [{"loss": 1}]}, "labels can't be called"),
        ([[5, 6]], {"prompt_lens": [3]}, "prompt_len is 3, expected 1 to 2"),
        (
            [[5, 6, 7], [5, 6, 8]],
            {"labels": [{"prompt": "a"}, {"prompt": "b"}], "prompt_lens": [2, 2]},
            "the prompts 'a' and 'b' are the same 2 tokens",
        ),
        ([[5, 6]], {"sink_ratio": 0.5}, "sink_ratio must be over 1"),
    ],
)
def test_bad_input(tiny: Any, sequences: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        l2.recording.optimisation_pressure(tiny, sequences, **options)


def test_a_broken_state_is_named(tiny: Any) -> None:
    last = backend_of(tiny).n_layers - 1

    def poison(tensor: Tensor, hook: Any) -> Tensor:
        broken = tensor.clone()
        broken[1, -2] = torch.nan
        return broken

    point = backend_of(tiny).resid_post(last)
    point.add_hook(poison)
    try:
        with pytest.raises(FloatingPointError, match=f"layer {last}, sequence 1, position 1"):
            l2.recording.optimisation_pressure(tiny, [[5, 6, 7, 8], [5, 6, 7]])
    finally:
        tiny.reset_hooks()
