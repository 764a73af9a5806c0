"""SAE features beside the norms are `sae.encode` of the states that the next block reads, and nothing is attached."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.saes import LATENTS, MAKERS, WIDTH, make_sae, needs_sae_lens, write_sae
from tests.slow import slow_but
from tests.texts import ids, prompts
from tl_l2norm.core.features import FeatureActs
from tl_l2norm.experiments.selfcheck import count_hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.saes.checks import check_saes

LAYERS = (2, 4)
KINDS = ("topk", "jumprelu", "standard", "gated", "topk layer_norm", "standard constant_norm_rescale")


def saes_of(kind: str, maker: str = "ours") -> dict[int, Any]:
    return {layer: make_sae(kind, layer, maker=maker) for layer in LAYERS}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("standard", "b_enc", torch.nan),
        ("topk", "W_enc", torch.nan),
        ("gated", "b_mag", torch.inf),
        ("standard", "b_dec", torch.nan),
    ],
)
def test_an_sae_that_makes_nan_of_sound_states_stops(tiny: Any, kind: str, name: str, value: float) -> None:
    saes = saes_of(kind)
    getattr(saes[4], name).data.view(-1)[3] = value
    if name == "b_mag":  # behind a gate that is open
        saes[4].b_gate.data[3] = 1e6
    with pytest.raises(FloatingPointError, match="activation of latent .* at layer 4 is (nan|inf)"):
        l2.collect(tiny, prompts()[:2], saes=saes, progress=False)
    with pytest.raises(FloatingPointError, match="at layer 4"):
        l2.generate(tiny, prompts()[:2], saes=saes, max_new_tokens=2, progress=False)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_same_states(tiny_case: models.Case, kind: str, maker: str) -> None:
    """Against a hook of the user's that keeps the states of each sequence alone, and against plain Hugging Face's."""
    model, saes = models.use(tiny_case), saes_of(kind, maker)
    plain = models.hugging_face(tiny_case.architecture)
    sequences = [*prompts()[:3], [7]]
    traces = l2.collect(model, sequences, saes=saes, layers=[0], batch_size=3, progress=False)
    for tokens, trace in zip(sequences, traces, strict=True):
        with torch.no_grad():
            hidden = plain(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states
        for layer, sae in saes.items():
            acts = trace.features[layer]
            with torch.no_grad(), backend_of(model).capture_stream(layer) as streams:
                model(torch.tensor([tokens]))
                truth = sae.encode(streams[0][0])
                from_plain = sae.encode(hidden[layer + 1][0])
            alone = l2.collect(model, [tokens], saes=saes, progress=False)[0].features[layer].dense()
            assert (alone - truth).abs().max() < 1e-5
            differ = (acts.dense() - from_plain).abs() >= 2e-3
            assert int(differ.sum()) <= (2 if kind == "gated" else 0), "a gate that is all but shut may open"
            assert torch.equal(acts.l0, (acts.dense() != 0).sum(1)) and acts.l0.sum() > 0
            assert acts.total().tolist() == pytest.approx(acts.dense().sum(1).tolist(), rel=1e-5, abs=1e-5)
            some = [3, 50, 99]
            assert acts.total(some).tolist() == pytest.approx(acts.dense()[:, some].sum(1).tolist(), rel=1e-5, abs=1e-5)
            assert acts.at(0) == pytest.approx({i: v for i, v in enumerate(acts.dense()[0].tolist()) if v})
    assert count_hooks(model) == 0


@pytest.mark.parametrize(("batch_size", "n"), [(1, 1), (4, 1), (4, 3)])
def test_features_of_decoding_are_those_of_one_pass(tiny: Any, batch_size: int, n: int) -> None:
    """While rows come and go, samples share a prompt, and interventions change what is read."""
    saes = saes_of("jumprelu")
    acting = [l2.Suppression(which="random", p=0.3, layers=list(LAYERS))]
    options: dict[str, Any] = {"saes": saes, "interventions": acting, "progress": False}
    stop = list(range(0, models.VOCABULARY, 9))
    sampled: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "stop": stop}
    out = l2.generate(tiny, prompts(), n=n, batch_size=batch_size, **sampled, **options)
    assert len({len(c.tokens) for c in out}) > 2
    again = l2.collect(tiny, out, **options)
    for decoded, forced in zip(out.traces, again, strict=True):
        for layer in LAYERS:
            assert len(decoded.features[layer]) == len(decoded)
            ours, truth = decoded.features[layer].dense(), forced.features[layer].dense()
            assert (ours - truth).abs().max() < 1e-3 * truth.abs().max()


def test_a_suppressed_state_is_encoded_as_the_next_block_reads_it(tiny: Any) -> None:
    saes = {2: make_sae("standard", 2)}
    plain = l2.collect(tiny, prompts()[:1], saes=saes, prompt_lens=[5], progress=False)[0]
    with torch.no_grad(), backend_of(tiny).capture_stream(2) as streams:
        tiny(plain.tokens[None])
    acting = [l2.Suppression({2: 0.0}, scale=0.1)]
    suppressed = l2.collect(tiny, prompts()[:1], saes=saes, prompt_lens=[5], interventions=acting, progress=False)[0]
    with torch.no_grad():
        truth = saes[2].encode(0.1 * streams[0][0, 5:])
    assert (suppressed.features[2].dense()[5:] - truth).abs().max() < 1e-5
    assert torch.equal(suppressed.features[2].dense()[:5], plain.features[2].dense()[:5])


@needs_sae_lens
def test_nobodys_hook_on_the_sae_hears_it_and_the_model_is_as_before(tiny: Any) -> None:
    saes, heard = saes_of("topk", "SAELens"), []
    tokens = torch.tensor([ids("The quick brown fox")])
    with torch.no_grad():
        before = tiny(tokens)
    saes[2].hook_sae_acts_post.add_hook(lambda tensor, hook: heard.append(1))
    l2.collect(tiny, tokens, saes=saes, progress=False)
    assert not heard
    with torch.no_grad():
        assert torch.equal(tiny(tokens), before)
        saes[2].encode(torch.zeros(1, WIDTH))
    assert heard == [1]


def test_features_are_saved_with_the_trace_and_stand_in_its_frame(tiny: Any, tmp_path: Path) -> None:
    traces = l2.collect(tiny, prompts()[:2], saes=saes_of("topk"), progress=False)
    l2.save_traces(tmp_path, traces)
    for loaded, trace in zip(l2.load_traces(tmp_path), traces, strict=True):
        assert loaded.features.keys() == trace.features.keys() == set(LAYERS)
        for layer, acts in trace.features.items():
            assert torch.equal(loaded.features[layer].dense(), acts.dense())
            assert (
                loaded.features[layer].sae == acts.sae == f"topk, 100 latents, blocks.{layer}.hook_resid_post of unnamed model"
            )
    frame = l2.to_frame(traces)
    at = frame.query("sequence == 1 and layer == 4 and position == 3").iloc[0]
    assert at["feature_l0"] == traces[1].features[4].l0[3]
    assert at["feature_sum"] == pytest.approx(float(traces[1].features[4].dense()[3].sum()))
    assert frame.query("layer == 3")["feature_sum"].isna().all()
    assert traces[0].select([4]).features.keys() == {4}


def test_parts_of_a_recording_join_in_order() -> None:
    dense = torch.tensor([[0.0, 2, 0], [0, 0, 0], [1, 0, 3]])
    acts = FeatureActs.of_dense(dense)
    assert torch.equal(acts.dense(), dense) and acts.l0.tolist() == [1, 0, 2]
    assert torch.equal(acts.select(torch.tensor([2, 0, 2])).dense(), dense[[2, 0, 2]])
    assert torch.equal(FeatureActs.join([acts, acts.select(torch.tensor([1]))]).dense(), torch.cat([dense, dense[1:2]]))
    assert acts.at(-1) == {2: 3.0, 0: 1.0}
    with pytest.raises(ValueError, match="the three must agree"):
        FeatureActs(starts=torch.tensor([0, 1]), latents=torch.tensor([1, 2]), values=torch.tensor([1.0, 2.0]), d_sae=3)


# What doesn't fit


def scaled(layer: int) -> Any:
    sae = make_sae("topk", layer, maker="SAELens")
    sae.cfg.normalize_activations = "expected_average_only_in"
    return sae


def in_training(layer: int) -> Any:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=4))


def of_other_positions(layer: int) -> Any:
    return make_sae("temporal", layer, maker="SAELens", options={"n_heads": 4, "bottleneck_factor": 1})


def of_other_streams(layer: int) -> Any:
    return make_sae("transcoder", layer, maker="SAELens", options={"d_out": WIDTH, "apply_b_dec_to_input": False})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(
            lambda: make_sae("topk", 2, maker="SAELens"),
            "it is of blocks.2.hook_resid_post, not of blocks.3.hook_resid_post",
            marks=needs_sae_lens,
        ),
        pytest.param(lambda: of_other_positions(3), "a temporal SAE reads the positions before", marks=needs_sae_lens),
        pytest.param(lambda: of_other_streams(3), "a transcoder writes another stream than it reads", marks=needs_sae_lens),
        (lambda: make_sae("topk", 2), "it is of blocks.2.hook_resid_post, not of blocks.3.hook_resid_post"),
        (lambda: make_sae("topk", 3, hook_name="blocks.3.hook_resid_pre"), "it is of blocks.3.hook_resid_pre, not of blocks.3"),
        (lambda: make_sae("topk", 3, hook_name="blocks.3.hook_mlp_out"), "it is of blocks.3.hook_mlp_out"),
        (lambda: make_sae("topk", 3, width=40), "it reads states of width 40, the stream has 48"),
        (lambda: make_sae("topk", 3, hook_head_index=1), "it is of one attention head"),
        pytest.param(lambda: scaled(3), r"its input scaling \(expected_average_only_in\) is not folded", marks=needs_sae_lens),
        pytest.param(lambda: in_training(3), "it is still in training", marks=needs_sae_lens),
        (
            lambda: make_sae("topk", 3, model_from_pretrained_kwargs={"center_writing_weights": True}),
            "it was trained on centred weights",
        ),
    ],
)
@pytest.mark.filterwarnings(r"ignore:\s*This SAE has non-empty model_from_pretrained_kwargs")
def test_an_sae_that_does_not_fit_is_refused_with_the_reason(tiny: Any, make: Any, says: str) -> None:
    sae = make()
    for call in (l2.collect, partial(l2.generate, max_new_tokens=2)):
        with pytest.raises(ValueError, match=f"the SAE for layer 3 doesn't fit: {says}"):
            call(tiny, [[5, 6, 7]], saes={3: sae}, progress=False)


def test_saes_of_the_same_tensor_under_other_names_fit(tiny: Any) -> None:
    truth = l2.collect(tiny, [[5, 6, 7]], saes={3: make_sae("topk", 3)}, progress=False)[0].features[3].dense()
    for name in ("blocks.3.hook_out", "blocks.4.hook_resid_pre", "blocks.4.hook_in"):
        sae = make_sae("topk", 3, hook_name=name)
        assert torch.equal(l2.collect(tiny, [[5, 6, 7]], saes={3: sae}, progress=False)[0].features[3].dense(), truth)
    with pytest.warns(UserWarning, match="the SAE for layer 3 was trained on gpt5, the model is"):
        l2.collect(tiny, [[5, 6, 7]], saes={3: make_sae("topk", 3, model_name="gpt5")}, progress=False)
    with pytest.raises(ValueError, match="the SAE for layer 7 doesn't fit: the model has layers 0 to 5"):
        l2.collect(tiny, [[5, 6, 7]], saes={7: make_sae("topk", 7)}, progress=False)
    with pytest.raises(TypeError, match=r"saes are given by layer, \{layer: sae\}, got '3' for a layer"):
        check_saes(backend_of(tiny), {"3": make_sae("topk", 3)})
    assert list(check_saes(backend_of(tiny), {np.int64(3): make_sae("topk", 3)})) == [3]
    with pytest.raises(ValueError, match="features are recorded beside the norms"):
        l2.generate(tiny, [[5, 6, 7]], max_new_tokens=2, saes={3: make_sae("topk", 3)}, record=False)


# Training and loading

RECIPE = l2.saes.SaeRecipe(d_sae=64, k=8, n_states=20_000, batch_size=250, lr=3e-3)
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return a * b\n",
    "Norms of the residual stream grow with depth; sinks are 100 times as large as other tokens.",
    "One two three four five six seven eight nine ten eleven twelve.",
]


def explained(model: Any, sae: Any, layer: int) -> float:
    """Explained variance over all tokens but the first, worked out on states of single passes."""
    states = []
    for text in TEXTS:
        with torch.no_grad(), backend_of(model).capture_stream(layer) as streams:
            model(torch.tensor([ids(text)]))
        states.append(streams[0][0, 1:])
    x = torch.cat(states).double()
    with torch.no_grad():
        rest = x - sae.decode(sae.encode(x.float())).double()
    return float(1 - rest.pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@needs_sae_lens
@pytest.mark.parametrize("buffer", slow_but([600], [1 << 18, 600]))
def test_training_explains_the_stream_and_goes_on_where_it_stopped(
    tiny: Any, tmp_path: Path, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a buffer that holds all states and with one that holds a part."""
    backend = backend_of(tiny)
    sequences = [ids(text) for text in TEXTS for _ in range(4)]
    options: dict[str, Any] = {"save_to": tmp_path, "recipe": RECIPE, "buffer": buffer, "progress": False}
    saes = l2.train_saes(tiny, sequences, layers=[1, 3], **options)
    assert list(saes) == [1, 3]
    for layer, sae in saes.items():
        assert explained(tiny, sae, layer) > 0.8 > explained(tiny, make_sae("topk", layer), layer)
        entry = l2.saes.evaluate_saes(tiny, {layer: sae}, [ids(text) for text in TEXTS], sink_ratio=1e6).iloc[0]
        assert entry["explained_variance"] == pytest.approx(explained(tiny, sae, layer), abs=1e-4)
        assert entry["low"] <= entry["explained_variance"] <= entry["high"] <= 1
        assert (entry["n"], entry["n_tokens"]) == (4, sum(len(ids(text)) - 1 for text in TEXTS)) and 0 < entry["l0"] <= RECIPE.k
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.normalize_activations) == (48, 64, "none")
        meta = sae.cfg.metadata
        assert (meta.hook_name, meta.model_name) == (f"blocks.{layer}.hook_resid_post", backend.model_name)
        assert not hasattr(sae, "training_forward_pass")
    stamp = (tmp_path / "layer_1" / "sae_weights.safetensors").stat().st_mtime_ns
    (tmp_path / "layer_3" / "cfg.json").unlink()
    (tmp_path / "layer_3" / "sae_weights.safetensors").unlink()
    again = l2.train_saes(tiny, sequences, layers=[1, 3], **options)
    assert (tmp_path / "layer_1" / "sae_weights.safetensors").stat().st_mtime_ns == stamp, "it was there"
    assert torch.equal(again[3].W_dec, saes[3].W_dec), "same seed, same SAE"
    with pytest.raises(ValueError, match="holds an SAE of another model, recipe or other prompts"):
        l2.train_saes(tiny, sequences[1:], layers=[1], **options)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    assert torch.equal(l2.train_saes(tiny, sequences, layers=[3], **options)[3].W_dec, saes[3].W_dec), "nothing to train"
    traces = l2.collect(tiny, sequences[:1], saes=l2.load_saes(tmp_path), progress=False)
    assert traces[0].features[3].l0.max() <= RECIPE.k
    assert l2.load_saes(tmp_path, layers=3).keys() == l2.load_saes(tmp_path / "layer_3").keys() == {3}


def test_prompts_of_a_single_token_leave_nothing_to_train_on(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each prompt is one token"):
        l2.train_saes(tiny, [[5], [6]], save_to=tmp_path, layers=[0])


@needs_sae_lens
def test_training_leaves_the_global_generator_alone_and_shows_a_bar(tiny: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    shown = io.StringIO()
    with redirect_stderr(shown):
        recipe = l2.saes.SaeRecipe(d_sae=16, k=2, n_states=200, batch_size=50)
        l2.train_saes(tiny, [ids(TEXTS[0])], save_to=tmp_path, layers=[0], recipe=recipe)
        assert torch.equal(torch.rand(1), expected) and "Training SAE" in shown.getvalue()
        shown.truncate(0)
        l2.train_saes(tiny, [ids(TEXTS[0])], save_to=tmp_path / "quiet", layers=[0], recipe=recipe, progress=False)
    assert "Training SAE" not in shown.getvalue()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"d_sae": 4, "k": 5}, r"k must be at most d_sae \(4\)"),
        ({"n_states": 10, "batch_size": 20}, r"n_states must be at least batch_size \(20\)"),
        ({"lr": -1.0}, "lr must be over 0"),
    ],
)
def test_a_bad_recipe_names_the_field(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        l2.saes.SaeRecipe(**options)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of SAEs at"):
        l2.load_saes(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no SAE in .*: expected cfg.json and sae_weights.safetensors"):
        l2.load_saes(tmp_path)
    write_sae(make_sae("topk", 2), tmp_path / "a")
    with pytest.raises(ValueError, match="has no SAE of layers 5: it has 2"):
        l2.load_saes(tmp_path, layers=[5])
    write_sae(make_sae("topk", 2), tmp_path / "b")
    with pytest.raises(ValueError, match="has two SAEs of layer 2: a and b"):
        l2.load_saes(tmp_path)
    write_sae(make_sae("topk", 2, hook_name="blocks.2.attn.hook_z"), tmp_path / "c")
    with pytest.raises(ValueError, match="the SAE is of 'blocks.2.attn.hook_z'; only those of resid_post"):
        l2.load_saes(tmp_path / "c")
    (tmp_path / "c" / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="is not the configuration of an SAE"):
        l2.load_saes(tmp_path / "c")
