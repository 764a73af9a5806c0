"""What stands beside a sequence, and in how many parts it is read, never changes what is recorded of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tl_l2norm as l2
from tests.decoders import CONFIGS, PROMPTS, RECURRENT, SMALL, bridge, hugging_face
from tests.oracles import greedy
from tl_l2norm.models.backend import Backend
from tl_l2norm.recording import collect

HYBRID = [name for name in CONFIGS if name.startswith(("lfm", "falcon h1", "jamba"))]
BOUNDARY = 24
LONG = list(range(50, 90))


def close(trace: l2.Trace | None, plain: Any) -> bool:
    """Whether norms are those of one pass of Hugging Face's over this sequence alone."""
    assert trace is not None
    norms: list[torch.Tensor] = []
    layers = plain.rwkv.blocks if hasattr(plain, "rwkv") else getattr(plain, "backbone", getattr(plain, "model", None)).layers
    handles = [
        layer.register_forward_hook(lambda _m, _a, out: norms.append((out if torch.is_tensor(out) else out[0]).norm(dim=-1)[0]))
        for layer in layers
    ]
    with torch.no_grad():
        plain(trace.tokens[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.allclose(trace.l2_norms, torch.stack(norms), rtol=1e-3)


def longrope() -> Any:
    options = {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "original_max_position_embeddings": BOUNDARY}
    return transformers.Phi3Config(
        **SMALL,
        original_max_position_embeddings=BOUNDARY,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **options},
    )


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", HYBRID)
def test_rows_of_a_hybrid_model_end_when_they_end(name: str, n: int) -> None:
    plain, model = hugging_face(CONFIGS[name]()), bridge(hugging_face(CONFIGS[name]()))
    stops = greedy(plain, PROMPTS[0], 4, eos=False)[2:]
    out = l2.generate(model, PROMPTS, n=n, max_new_tokens=9, stop=stops, ignore_eos=True, progress=False)
    assert len({len(completion.tokens) for completion in out}) > 1
    for completion in out:
        prompt, tokens = PROMPTS[completion.prompt_index], list(completion.tokens)
        assert tokens == greedy(plain, prompt, len(tokens), eos=False)
        assert close(completion.trace, plain)


@pytest.mark.filterwarnings("ignore:this model:UserWarning")
@pytest.mark.parametrize("name", [*HYBRID, *RECURRENT])
def test_a_mixer_is_read_in_any_batch_and_any_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CONFIGS, **RECURRENT}[name]
    plain, model = hugging_face(config()), bridge(hugging_face(config()))
    for scores in (40, collect._SCORES):
        monkeypatch.setattr(collect, "_SCORES", scores)
        assert all(close(trace, plain) for trace in l2.collect(model, [*PROMPTS, LONG], progress=False))


def test_a_model_that_takes_padding_for_tokens_reads_one_at_a_time_and_says_so() -> None:
    plain, model = hugging_face(RECURRENT["rwkv"]()), bridge(hugging_face(RECURRENT["rwkv"]()))
    with pytest.warns(UserWarning, match="takes padding for tokens"):
        traces = l2.collect(model, PROMPTS, progress=False)
    assert all(close(trace, plain) for trace in [*traces, *l2.collect(model, PROMPTS, progress=False)])


def test_a_model_that_decodes_padding_decodes_one_at_a_time_and_says_so() -> None:
    plain, model = hugging_face(CONFIGS["llama"]()), bridge(hugging_face(CONFIGS["llama"]()))

    def all_real(module: Any, args: Any, kwargs: Any) -> Any:
        places = torch.arange(kwargs["attention_mask"].shape[1])[None, -args[0].shape[1] :] if args else None
        return args, {**kwargs, "attention_mask": torch.ones_like(kwargs["attention_mask"]), "position_ids": places}

    model.original_model.register_forward_pre_hook(all_real, with_kwargs=True)
    with pytest.warns(UserWarning, match="one at a time"):
        out = l2.generate(model, PROMPTS, max_new_tokens=6, ignore_eos=True, progress=False)
    again = l2.generate(model, PROMPTS, n=2, max_new_tokens=6, ignore_eos=True, progress=False)
    for completion in [*out, *again]:
        assert list(completion.tokens) == greedy(plain, PROMPTS[completion.prompt_index], 6, eos=False)


@pytest.mark.parametrize("scores", [60, collect._SCORES])
def test_texts_on_both_sides_of_longrope_are_read_as_alone(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_SCORES", scores)
    plain, model = hugging_face(longrope()), bridge(hugging_face(longrope()))
    texts = [LONG[:20], LONG, LONG[:BOUNDARY], LONG[: BOUNDARY + 1], LONG[3:13]]
    traces = l2.collect(model, texts, progress=False)
    assert all(close(trace, plain) for trace in traces)


def test_responses_on_both_sides_of_longrope_are_decoded_as_alone() -> None:
    plain, model = hugging_face(longrope()), bridge(hugging_face(longrope()))
    prompts = [LONG[:6], LONG, LONG[:10], LONG[: BOUNDARY + 1], LONG[: BOUNDARY - 7]]
    for completion in l2.generate(model, prompts, max_new_tokens=8, ignore_eos=True, progress=False):
        assert list(completion.tokens) == greedy(plain, prompts[completion.prompt_index], 8, eos=False)
        assert close(completion.trace, plain)


@pytest.mark.parametrize("length", [BOUNDARY, BOUNDARY - 6, 5])
def test_a_response_that_would_cross_longropes_boundary_is_refused(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge(hugging_face(longrope()))
    most = BOUNDARY - length + 1
    monkeypatch.setattr(Backend, "forward", None)  # before anything runs
    with pytest.raises(l2.errors.Unsupported, match=f"generate at most {most}, or begin with more than {BOUNDARY}"):
        l2.generate(model, [LONG, LONG[:length]], max_new_tokens=most + 1, progress=False)
    monkeypatch.undo()
    assert l2.generate(model, [LONG, LONG[:length]], max_new_tokens=most, ignore_eos=True, progress=False)
