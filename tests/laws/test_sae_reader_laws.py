"""SAEs are read and run as SAELens does it, whether or not it is installed, and what can't be is refused by name."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tl_l2norm as l2
from tests import models
from tests.saes import LATENTS, WIDTH, config_of, make_sae, needs_sae_lens, write_sae
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.sources import bundled_folder
from tl_l2norm.saes.checks import describe_sae, sae_key, unit_directions
from tl_l2norm.saes.config import parse_sae_config
from tl_l2norm.saes.reader import read_sae

needs_hooked = pytest.mark.skipif(not models.HAS_HOOKED, reason="needs HookedTransformer")
SCALINGS = ("none", "layer_norm", "constant_norm_rescale")
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {}),
    ("topk", {}),
    ("topk", {"k": 100, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
    ("gated", {}),
]
GRID = [
    pytest.param(f"{kind} {scaling}", {**own, "apply_b_dec_to_input": subtracts}, id=f"{kind}-{own}-{scaling}-{subtracts}")
    for (kind, own), scaling, subtracts in product(KINDS, SCALINGS, (True, False))
]


def states(n: int = 40, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """As a residual stream is: off centre, of very different norms, one dimension far larger than the others."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, width, generator=draw) * torch.logspace(-1, 2, n)[:, None] + 0.7
    drawn[:, 5] *= 30
    return drawn


def by_hand(sae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations and reconstruction of one state, from the definition, latent by latent, in double precision."""
    cfg, w = sae.cfg, {name: tensor.double().numpy() for name, tensor in sae.state_dict().items()}
    centre, scale = 0.0, 1.0
    if cfg.normalize_activations == "layer_norm":
        centre, scale = x.mean(), (((x - x.mean()) ** 2).sum() / (len(x) - 1)) ** 0.5
    elif cfg.normalize_activations == "constant_norm_rescale":
        scale = (x**2).sum() ** 0.5 / len(x) ** 0.5
    read = (x - centre) / scale - (w["b_dec"] if cfg.apply_b_dec_to_input else 0)
    norms = (w["W_dec"] ** 2).sum(axis=1) ** 0.5 if cfg.rescale_acts_by_decoder_norm else np.ones(cfg.d_sae)
    hidden = np.array([float(read @ w["W_enc"][:, j]) for j in range(cfg.d_sae)])
    acts = np.zeros(cfg.d_sae)
    for j in range(cfg.d_sae):
        if cfg.kind == "gated":
            gate, magnitude = hidden[j] + w["b_gate"][j], hidden[j] * np.exp(w["r_mag"][j]) + w["b_mag"][j]
            acts[j] = max(magnitude, 0) if gate > 0 else 0
        else:
            value = (hidden[j] + w["b_enc"][j]) * norms[j]
            acts[j] = max(value, 0) if cfg.kind != "jumprelu" or value > w["threshold"][j] else 0
    if cfg.kind == "topk":
        acts[np.argsort(-(hidden + w["b_enc"]) * norms)[cfg.k :]] = 0
    return acts, (acts / norms @ w["W_dec"] + w["b_dec"]) * scale + centre


@pytest.mark.parametrize(("kind", "options"), GRID)
def test_activations_and_reconstruction_are_those_of_the_definition(kind: str, options: dict[str, Any]) -> None:
    sae, x = make_sae(kind, 3, options=options), states()
    with torch.no_grad():
        acts, out = sae.encode(x), sae(x)
    assert torch.equal(sae.decode(acts, x), out) and acts.shape == (40, LATENTS) and 0 < (acts != 0).sum() < acts.numel()
    for row, (encoded, decoded) in enumerate(zip(acts, out, strict=True)):
        expected, reconstructed = by_hand(sae, x[row].double().numpy())
        assert np.abs(encoded.numpy() - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1.0)
        assert np.abs(decoded.numpy() - reconstructed).max() <= 1e-4 * np.abs(reconstructed).max()
    assert torch.allclose(sae.encode(x.view(4, 10, WIDTH)).view(40, -1), acts, rtol=1e-5, atol=1e-5), (
        "any shape before the last"
    )


@needs_sae_lens
@pytest.mark.parametrize(("kind", "options"), GRID)
def test_saelens_own_files_give_saelens_own_numbers(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    from sae_lens import SAE

    made = make_sae(kind, 3, maker="SAELens", options=options, model_name="somebody/some-model")
    made.save_model(tmp_path)
    theirs, x = SAE.load_from_disk(tmp_path, dtype="float32"), states()
    (ours,) = l2.load_saes(tmp_path).values()
    with torch.no_grad():
        acts = theirs.encode(x)
        out = theirs.decode(acts)
        assert (ours.encode(x) - acts).abs().max() <= 1e-6 * acts.abs().max()
        assert torch.equal(ours.encode(x) != 0, acts != 0)
        assert (ours.decode(acts, x) - out).abs().max() <= 1e-6 * out.abs().max()
    assert (describe_sae(ours), sae_key(ours)) == (describe_sae(theirs), sae_key(theirs)) == (describe_sae(made), sae_key(made))
    blank, truth = (l2.saes.untrained_saes({3: sae}, seed=5)[3] for sae in (ours, theirs))
    assert sae_key(blank) == sae_key(truth) != sae_key(ours) and torch.equal(blank.W_enc, truth.W_enc)
    assert torch.allclose(unit_directions(ours), unit_directions(theirs))


@needs_sae_lens
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_are_read_as_saelens_reads_them(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    from sae_lens import SAE

    make_sae(kind, 3, maker="SAELens").to(dtype=dtype).save_model(tmp_path)
    for wanted in (torch.float32, dtype):
        theirs = SAE.load_from_disk(tmp_path, dtype=str(wanted).removeprefix("torch."))
        ours = l2.load_saes(tmp_path, dtype=wanted)[3]
        assert ours.dtype == wanted and sae_key(ours) == sae_key(theirs)
        with torch.no_grad():
            acts, truth = ours.encode(states(10)), theirs.encode(states(10))
        assert acts.dtype == truth.dtype == wanted
        assert (acts - truth).abs().max() <= 1e-6 * truth.abs().max()


@needs_sae_lens
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk", "jumprelu", "topk", "gated", "standard"])
@pytest.mark.parametrize("rescale", [True, False])
def test_what_training_leaves_for_inference_is_read(tmp_path: Path, kind: str, rescale: bool) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    made, config = get_sae_training_class(kind)
    own: dict[str, Any] = {"k": 7, "rescale_acts_by_decoder_norm": rescale} if "topk" in kind else {}
    if kind.startswith("matryoshka"):
        own["matryoshka_widths"] = [20, LATENTS]
    torch.manual_seed(1)
    trained = made(config(d_in=WIDTH, d_sae=LATENTS, metadata=SAEMetadata(hook_name="blocks.3.hook_resid_post"), **own))
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    if "batchtopk" in kind:
        trained.topk_threshold.fill_(0.3)
    trained.save_inference_model(tmp_path / "done")
    theirs, ours, x = SAE.load_from_disk(tmp_path / "done"), l2.load_saes(tmp_path / "done")[3], states()
    assert ours.cfg.kind == ("jumprelu" if "batchtopk" in kind else kind)
    with torch.no_grad():
        acts = theirs.encode(x)
        assert (ours.encode(x) - acts).abs().max() <= 1e-6 * acts.abs().max() and acts.any()
    assert sae_key(ours) == sae_key(theirs)
    trained.save_model(tmp_path / "checkpoint")
    if "batchtopk" in kind:
        with pytest.raises(
            NotImplementedError, match=rf"still in training \({kind}\): load what SAELens' save_inference_model"
        ):
            l2.load_saes(tmp_path / "checkpoint")
    else:
        of_checkpoint = l2.load_saes(tmp_path / "checkpoint")[3].encode(x)  # decoder norms are not yet folded
        assert (of_checkpoint - acts).abs().max() <= 1e-5 * acts.abs().max()


@needs_sae_lens
def test_those_of_the_tiny_reasoner_are_saelens_own() -> None:
    from sae_lens import SAE

    for layer, ours in l2.load_saes("tiny-reasoner").items():
        theirs = SAE.load_from_disk(bundled_folder("tiny-reasoner") / "saes" / f"layer_{layer}")
        x = states(60, width=128, seed=layer)
        with torch.no_grad():
            acts = theirs.encode(x)
            assert (ours.encode(x) - acts).abs().max() <= 1e-6 * acts.abs().max()
            assert (ours(x) - theirs.decode(acts)).abs().max() <= 1e-6 * x.abs().max()
        assert sae_key(ours) == sae_key(theirs) and not theirs.cfg.metadata.note


@pytest.mark.parametrize("backend", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("factor", [1.0, 1.2, 0.999])
def test_those_of_the_tiny_reasoner_know_its_weights(backend: Any, factor: float) -> None:
    """Warnings are errors."""
    model = l2.load_model("tiny-reasoner", backend=backend, device="cpu")
    for weight in model.parameters():
        weight.data.mul_(factor)
    saes = l2.load_saes("tiny-reasoner", layers=[2])
    with pytest.warns(UserWarning, match="trained on other weights") if factor != 1 else nullcontext():
        l2.collect(model, [[5, 6, 7, 8]], saes=saes, progress=False)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_nothing_is_kept_between_calls(scaling: str) -> None:
    """SAELens' decode undoes the scale of whatever was encoded last."""
    sae, a, b = make_sae(f"standard {scaling}", 3), states(seed=1), 100 * states(7, seed=2)
    acts = sae.encode(a)
    alone = sae.decode(acts, a)
    sae.encode(b)
    assert torch.equal(sae.decode(acts, a), alone) and torch.equal(sae.decode(acts, a), alone)
    assert torch.equal(sae(b), sae.decode(sae.encode(b), b))
    with pytest.raises(ValueError, match=rf"reads normalised states \({scaling}\): decode\(feature_acts, states\)"):
        sae.decode(acts)


@pytest.mark.parametrize("kind", ["standard", "topk layer_norm", "gated constant_norm_rescale", "jumprelu"])
def test_explained_variance_is_that_of_the_reconstruction(tiny: Any, kind: str) -> None:
    sae = make_sae(kind, 2)
    tokens = [5, 6, 7, 8, 9, 10, 11]
    entry = l2.saes.evaluate_saes(tiny, {2: sae}, [tokens] * 3, sink_ratio=1e9, progress=False).iloc[0]
    with torch.no_grad(), backend_of(tiny).capture_stream(2) as streams:
        tiny(torch.tensor([tokens]))
    x = streams[0][0, 1:].double().numpy()  # the first token is a sink
    rest = np.stack([x[i] - by_hand(sae, x[i])[1] for i in range(len(x))])
    assert entry["explained_variance"] == pytest.approx(1 - (rest**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-3)
    assert entry["residual"] == pytest.approx((rest**2).sum() / (x**2).sum(), rel=1e-3)


def test_it_is_a_module_with_parameters() -> None:
    sae = make_sae("gated", 3)
    assert {name: tuple(p.shape) for name, p in sae.named_parameters()} == {
        "b_dec": (48,),
        "W_dec": (100, 48),
        "W_enc": (48, 100),
        **dict.fromkeys(("b_gate", "r_mag", "b_mag"), (100,)),
    }
    assert not any(p.requires_grad for p in sae.parameters())
    assert sae.device == torch.device("cpu") and sae.to(torch.float64).dtype == torch.float64
    assert repr(sae) == "Sae(gated, 48 -> 100, blocks.3.hook_resid_post)"
    x = states(3).requires_grad_()
    sae(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0, "gradients reach the states"
    with pytest.raises(AttributeError, match="cannot assign"):
        sae.cfg.d_sae = 5


# Keys of saved work


@pytest.mark.parametrize("maker", ["ours", pytest.param("SAELens", marks=needs_sae_lens)])
@pytest.mark.parametrize(
    "change",
    [
        {"k": 8},
        {"apply_b_dec_to_input": False},
        {"rescale_acts_by_decoder_norm": True},
        {"normalize_activations": "layer_norm"},
    ],
)
def test_the_key_knows_all_that_changes_activations(maker: str, change: dict[str, Any]) -> None:
    """The weights are the same throughout."""
    plain, other = (make_sae("topk", 3, maker=maker, options=options) for options in ({}, change))
    assert torch.equal(plain.W_enc, other.W_enc) and sae_key(plain) != sae_key(other)
    assert sae_key(plain) == sae_key(make_sae("topk", 3, maker=maker))
    assert sae_key(plain) != sae_key(make_sae("topk", 3, maker=maker).to(torch.bfloat16).to(torch.float32))


# Files of earlier versions


OLD: dict[str, Any] = {
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "dtype": "torch.float32",
    "device": "cuda",
    "model_name": "gpt2-small",
    "hook_layer": 3,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "Skylion007/openwebtext",
    "l1_coefficient": 8e-5,
    "normalize_sae_decoder": False,
}


@pytest.mark.parametrize(
    ("kind", "scaling", "config"),
    [
        ("standard", "none", {"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3}),
        (
            "standard",
            "none",
            {"hook_name": "blocks.3.hook_resid_post", "activation_fn_str": "relu", "architecture": "standard"},
        ),
        ("standard", "none", {"hook_name": "blocks.4.hook_resid_pre", "normalize_activations": False}),
        ("standard", "layer_norm", {"hook_name": "blocks.3.hook_resid_post", "normalize_activations": "layer_norm"}),
        (
            "topk",
            "none",
            {"hook_name": "blocks.3.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}},
        ),
        (
            "topk",
            "none",
            {
                "hook_name": "blocks.3.hook_resid_post",
                "architecture": "topk",
                "activation_fn": "topk",
                "activation_fn_kwargs": {"k": 7},
                "sae_lens_training_version": "5.3.0",
            },
        ),
        ("gated", "none", {"hook_name": "blocks.3.hook_resid_post", "architecture": "gated", "normalize_activations": None}),
        (
            "jumprelu",
            "none",
            {"hook_name": "blocks.3.hook_resid_post", "architecture": "jumprelu", "apply_b_dec_to_input": False},
        ),
    ],
)
def test_files_from_before_saelens_6(tmp_path: Path, kind: str, scaling: str, config: dict[str, Any]) -> None:
    subtracts = config.get("apply_b_dec_to_input", True)
    truth = make_sae(f"{kind} {scaling}", 3, options={"apply_b_dec_to_input": subtracts})
    write_sae(truth, tmp_path, {**OLD, **config})
    (ours,) = l2.load_saes(tmp_path, layers=3).values()
    assert torch.equal(ours.encode(states()), truth.encode(states()))
    meta = ours.cfg.metadata
    assert (meta.model_name, meta.prepend_bos, meta.dataset_path) == ("gpt2-small", True, "Skylion007/openwebtext")


@needs_sae_lens
@pytest.mark.parametrize(
    "config",
    [
        {"hook_point": "blocks.3.hook_resid_post"},
        {"hook_name": "blocks.3.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
        {"hook_name": "blocks.3.hook_resid_post", "normalize_activations": "constant_norm_rescale"},
    ],
)
def test_they_are_read_as_saelens_reads_them(tmp_path: Path, config: dict[str, Any]) -> None:
    from sae_lens import SAE

    write_sae(make_sae("standard", 3), tmp_path, {**OLD, "device": "cpu", **config})
    theirs, ours = SAE.load_from_disk(tmp_path, dtype="float32"), l2.load_saes(tmp_path)[3]
    with torch.no_grad():
        acts = theirs.encode(states())
    assert (ours.encode(states()) - acts).abs().max() <= 1e-6 * acts.abs().max()
    assert sae_key(ours) == sae_key(theirs) and describe_sae(ours) == describe_sae(theirs)


def test_old_weights_are_understood(tmp_path: Path) -> None:
    sae = make_sae("jumprelu", 3)
    sae.threshold.data.abs_()
    file = write_sae(sae, tmp_path) / "sae_weights.safetensors"
    weights = load_file(file)
    logged = {name: tensor for name, tensor in weights.items() if name != "threshold"}
    save_file({**logged, "log_threshold": weights["threshold"].log(), "scaling_factor": torch.ones(LATENTS)}, file)
    assert (read_sae(tmp_path).encode(states()) - sae.encode(states())).abs().max() < 1e-4
    save_file({**weights, "scaling_factor": torch.full((LATENTS,), 1.1)}, file)
    with pytest.raises(NotImplementedError, match="fine-tuned scaling_factor"):
        read_sae(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architecture": "transcoder"}, "a transcoder writes another stream than it reads"),
        ({"architecture": "jumprelu_skip_transcoder"}, "a transcoder writes another stream"),
        ({"architecture": "crosscoder"}, "a crosscoder reads several layers"),
        ({"architecture": "temporal"}, "a temporal SAE reads the positions before"),
        ({"architecture": "matching_pursuit"}, "architecture 'matching_pursuit' is not one of standard, topk, jumprelu, gated"),
        ({"architecture": "abstopk"}, "architecture 'abstopk' is not one of"),
        ({"architecture": "batchtopk"}, "still in training"),
        (
            {"normalize_activations": "expected_average_only_in"},
            r"its input scaling \(expected_average_only_in\) is not folded",
        ),
        ({"normalize_activations": "covariance_whitening"}, r"its input scaling \(covariance_whitening\) is not folded"),
        ({"normalize_activations": True}, r"its input scaling \(expected_average_only_in\) is not folded"),
        ({"normalize_activations": "rms"}, "input scaling 'rms' is not one of none, layer_norm, constant_norm_rescale"),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu' of architecture 'standard' is not known"),
        ({"activation_fn": "topk", "architecture": "gated"}, "activation function 'topk' of architecture 'gated'"),
        ({"reshape_activations": "hook_z"}, "it reads heads put together"),
        ({"soft_cap": 30.0}, r"settings that are not known here \(soft_cap\)"),
        ({"d_sae": ...}, "d_sae is None, not a whole number"),
        ({"d_in": 0}, "sizes of an SAE are at least 1"),
        ({"d_in": "48"}, "d_in is '48', not a whole number"),
        ({"architecture": "topk", "k": 101}, "k at most d_sae, got 48, 100, k=101"),
        ({"architecture": "topk"}, "k is None, not a whole number"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false', neither true nor false"),
        ({"architecture": "topk", "k": 7, "rescale_acts_by_decoder_norm": 1}, "rescale_acts_by_decoder_norm is 1, neither"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    write_sae(make_sae("standard", 3), tmp_path, **changed)
    with pytest.raises(ValueError, match=says) as caught:
        l2.load_saes(tmp_path)
    assert "cfg.json" in str(caught.value)


EARLY = {
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "architecture": "standard",
    "hook_name": "blocks.3.hook_resid_post",
    "hook_layer": 3,
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"is_transcoder": True}, r"writes another stream than it reads \(is_transcoder\)"),
        ({"is_transcoder": "no"}, "is_transcoder is 'no', neither true nor false"),
        ({"hook_name_out": "blocks.3.hook_mlp_out"}, "writes another stream .*hook_name_out = 'blocks.3.hook_mlp_out'"),
        ({"d_out": WIDTH + 1}, "writes another stream .*d_out = 49"),
        ({"hook_layer": 4}, "hook_layer is 4, hook_name 'blocks.3.hook_resid_post': one of them is wrong"),
        ({"post_relu": False}, r"no ReLU \(post_relu = false\)"),
        ({"use_relu": False}, r"no ReLU \(use_relu = false\)"),
    ],
)
def test_what_a_file_from_before_saelens_6_says_of_another_encoder_is_refused(changed: dict[str, Any], says: str) -> None:
    neutral = {
        "is_transcoder": False,
        "hook_name_out": EARLY["hook_name"],
        "d_out": WIDTH,
        "post_relu": True,
        "use_relu": None,
    }
    assert parse_sae_config({**EARLY, **neutral}) == parse_sae_config(EARLY)
    with pytest.raises(ValueError, match=says):
        parse_sae_config({**EARLY, **changed})


@pytest.mark.parametrize(("kind", "name"), [("standard", "b_enc"), ("jumprelu", "threshold"), ("gated", "W_enc")])
def test_a_file_with_nan_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    sae = make_sae(kind, 3)
    getattr(sae, name).data.view(-1)[5] = torch.nan
    write_sae(sae, tmp_path)
    with pytest.raises(ValueError, match=f"sae_weights.safetensors holds NaN in {name}"):
        l2.load_saes(tmp_path)


@pytest.mark.parametrize(
    "hook_name", ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "blocks.0.hook_resid_pre", "hook_embed", None]
)
def test_saes_of_other_streams_are_refused_by_name(tmp_path: Path, hook_name: str | None) -> None:
    config = config_of(make_sae("standard", 3))
    config["metadata"]["hook_name"] = hook_name
    write_sae(make_sae("standard", 3), tmp_path / "other", config)
    with pytest.raises(ValueError, match=f"the SAE is of {hook_name!r}; only those of resid_post can be used"):
        l2.load_saes(tmp_path)
    write_sae(make_sae("standard", 5), tmp_path / "right")
    assert list(l2.load_saes(tmp_path, layers=[5])) == [5], "others beside the wanted one are no matter"
    with pytest.raises(ValueError, match=f"the SAE is of {hook_name!r}"):
        l2.load_saes(tmp_path)


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    sae = make_sae("standard", 3)
    file = write_sae(sae, tmp_path) / "sae_weights.safetensors"
    weights = load_file(file)
    write_sae(sae, tmp_path, d_sae=99)
    with pytest.raises(
        ValueError, match=r"W_dec is \(100, 48\), expected \(99, 48\); W_enc is \(48, 100\), expected \(48, 99\)"
    ):
        l2.load_saes(tmp_path)
    write_sae(sae, tmp_path, architecture="jumprelu")
    with pytest.raises(ValueError, match=r"of the jumprelu SAE in cfg.json: threshold is not there, expected \(100,\)"):
        l2.load_saes(tmp_path)
    write_sae(make_sae("gated", 3), tmp_path, architecture="standard")
    with pytest.raises(ValueError, match="b_enc is not there, .*; b_gate is .*, expected none"):
        l2.load_saes(tmp_path)
    write_sae(sae, tmp_path)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        l2.load_saes(tmp_path)
    file.rename(tmp_path / "sae.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"no sae_weights.safetensors beside cfg.json in .*: there are cfg.json, sae.safet"
    ):
        l2.load_saes(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the configuration of an SAE: it holds a list"):
        l2.load_saes(tmp_path)
    assert weights.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}


def test_a_file_of_version_6_is_parsed_key_by_key() -> None:
    text = json.dumps(config_of(make_sae("topk", 3, options={"k": 9, "rescale_acts_by_decoder_norm": True})))
    config = parse_sae_config(json.loads(text))
    assert (config.kind, config.k, config.rescale_acts_by_decoder_norm, config.d_in, config.d_sae) == ("topk", 9, True, 48, 100)
    assert config.metadata.hook_name == "blocks.3.hook_resid_post" and config.metadata.note is None
