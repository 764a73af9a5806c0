"""Where SAEs come from: the hub, SAELens' releases, and which layer a name means."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl_l2norm as l2
from tests.saes import make_sae, needs_sae_lens, write_sae
from tl_l2norm.saes.checks import read_layer
from tl_l2norm.saes.load import _layer_numbers, _named_layer, _names_layer, _release_ids


@pytest.mark.parametrize(
    ("sae_id", "layer"),
    [
        ("layer_12/width_16k/average_l0_82", 12),
        ("layer_9/width_131k/canonical", 9),
        ("layer_10_width_16k_l0_big", 10),
        ("layer_24_width_262k_l0_medium_seed_1", 24),
        ("resid_post/layer_17_width_1m_l0_small", 17),
        ("layer0", 0),
        ("Layer-31", 31),
        ("resid_post_layer_3_trainer_1", 3),
        ("blocks.3.hook_resid_post__trainer_4", 3),
        ("blocks.12.hook_resid_post__trainer_0_step_7", 12),
        ("blocks.11.hook_resid_post", 11),
        ("blocks.5.hook_resid_pre", 4),
        ("blocks.8.hook_resid_pre_768", 7),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.8.hook_mlp_out", None),
        ("blocks.8.hook_attn_out", None),
        ("blocks.8.attn.hook_z", None),
        ("blocks.8.hook_z", None),
        ("blocks.8.hook_resid_mid", None),
        ("l19r_32x", 19),
        ("l0r_400m_slimpajama_400m_openr1_math", 0),
        ("l19m_32x", None),
        ("l19a_8x", None),
        ("embedding/width_4k/average_l0_6", None),
        ("width_16k/average_l0_12", None),
        ("layer_3_to_layer_7", None),
        ("multilayer_12", None),
        ("model_l2_norm", None),
    ],
)
def test_a_name_means_one_layer_or_none(sae_id: str, layer: int | None) -> None:
    assert _named_layer(sae_id) == layer
    assert [number for number in range(140) if _names_layer(sae_id, number)] == ([] if layer is None else [layer])


@needs_sae_lens
def test_names_in_saelens_own_list_mean_what_their_configurations_say() -> None:
    """Those whose configuration SAELens works out without the hub: Gemma Scope, Qwen Scope, Goodfire, DeepSeek."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    offline = ("gemma_2", "gemma_2_transcoder", "qwen_scope", "goodfire", "deepseek_r1")
    seen = 0
    for release in get_pretrained_saes_directory().values():
        if loaders.get_conversion_loader_name(release.release) not in offline:
            continue
        for sae_id in list(release.saes_map)[::5]:
            config = loaders.load_sae_config_from_huggingface(release.release, sae_id)
            hook_name = config.get("hook_name") or config["metadata"]["hook_name"]
            if (layer := read_layer(hook_name)) is not None:
                assert _named_layer(sae_id) == layer, (release.release, sae_id, hook_name)
                seen += 1
    assert seen > 300


@needs_sae_lens
def test_ids_and_paths_of_saelens_own_list_agree() -> None:
    """A path that holds a layer holds the one that its id is taken for, and no id is taken for two."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    several = []
    for release in get_pretrained_saes_directory().values():
        for sae_id, path in release.saes_map.items():
            of_id, of_path = _named_layer(sae_id), _named_layer(path.replace("__", "/"))
            if None not in (of_id, of_path) and of_id != of_path and "hook_resid_pre" not in sae_id:
                several.append((release.release, sae_id, path))
    assert not several


# Releases


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What would go to the hub: doubles stand in, SAELens' own list of releases is the real one.

    Configurations say what the SAE's name says, but for those that are noted as wrong here.
    """
    import sae_lens
    from sae_lens.loading import pretrained_sae_loaders as loaders

    asked: list[tuple[str, str]] = []
    wrong = {
        "layer_12/width_16k/average_l0_82": "blocks.11.hook_resid_post",
        "layer_20/width_16k/average_l0_71": "blocks.20.hook_mlp_out",
        "layer_5/width_16k/average_l0_68": None,
    }

    def hook_name(sae_id: str) -> str | None:
        own = sae_id.removesuffix("_768") if sae_id.startswith("blocks.") else f"blocks.{_named_layer(sae_id)}.hook_resid_post"
        return wrong.get(sae_id, own)

    def config(release: str, sae_id: str, **_: Any) -> dict[str, Any]:
        return {"metadata": {"hook_name": hook_name(sae_id)}}

    def load(release: str, sae_id: str, **_: Any) -> Any:
        asked.append((release, sae_id))
        kind, options = ("temporal", {"n_heads": 4, "bottleneck_factor": 1}) if "temporal" in release else ("topk", {})
        return make_sae(kind, 0, maker="SAELens", options=options, hook_name=hook_name(sae_id))

    monkeypatch.setattr(loaders, "load_sae_config_from_huggingface", config)
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", load)
    return asked


@needs_sae_lens
def test_a_release_is_asked_for_one_sae_a_layer(hub: list[tuple[str, str]]) -> None:
    saes = l2.load_saes("gpt2-small-res-jb", layers=[3, 8])  # SAEs on resid_pre: of the layer before
    assert hub == [("gpt2-small-res-jb", f"blocks.{layer}.hook_resid_pre") for layer in (4, 9)]
    assert list(saes) == [3, 8]
    assert list(l2.load_saes("gemma-scope-9b-it-res-canonical", sae_ids="layer_9/width_16k/canonical")) == [9]
    assert list(l2.load_saes("llama_scope_lxr_8x", layers=[31, 0])) == [0, 31]
    assert list(l2.load_saes("gpt2-small-res-jb-feature-splitting", sae_ids=["blocks.8.hook_resid_pre_768"])) == [7]


@needs_sae_lens
@pytest.mark.parametrize(
    ("release", "options", "says"),
    [
        ("gpt2-small-res-jbb", {"layers": [3]}, "no release of SAELens; did you mean 'gpt2-small-res-jb'"),
        ("gpt2-small-res-jb", {}, r"gpt2-small-res-jb has \d+ SAEs: say which"),
        (
            "gemma-scope-2b-pt-res",
            {"layers": [12]},
            r"2b-pt-res has \d+ SAEs whose names hold layer 12: give sae_ids",
        ),
        ("gemma-scope-2b-pt-res", {"sae_ids": ["layer_99"]}, "has no SAE 'layer_99'"),
        ("gemma-scope-9b-it-res", {"layers": [0]}, "no SAE whose name holds layer 0: its names hold 9, 20, 31; sae_ids="),
        ("gpt2-small-res-jb", {"layers": [12]}, "no SAE whose name holds layer 12: its names hold 0-11; sae_ids="),
        (
            "gpt2-small-mlp-out-v5-32k",
            {"layers": [3]},
            "no SAE whose name holds layer 3: its names hold no layer of resid_post",
        ),
        ("llama_scope_lxm_8x", {"layers": [3]}, "its names hold no layer of resid_post"),
        (
            "gpt2-small-mlp-out-v5-32k",
            {"sae_ids": ["blocks.3.hook_mlp_out"]},
            "is an SAE of 'blocks.3.hook_mlp_out'; only those",
        ),
        (
            "gemma-scope-2b-pt-res",
            {"sae_ids": ["layer_12/width_16k/average_l0_82"]},
            "by its name of layer 12, by its configuration of blocks.11.hook_resid_post",
        ),
        ("gemma-scope-2b-pt-res", {"sae_ids": ["layer_20/width_16k/average_l0_71"]}, "is an SAE of 'blocks.20.hook_mlp_out'"),
        ("gemma-scope-2b-pt-res", {"sae_ids": ["layer_5/width_16k/average_l0_68"]}, "is an SAE of None"),
        (
            "gemma-scope-2b-pt-res",
            {"sae_ids": ["layer_0/width_16k/average_l0_13", "layer_0/width_16k/average_l0_25"]},
            "are both of layer 0: give one for each layer",
        ),
    ],
)
def test_what_a_release_does_not_have_is_said_before_weights_are_fetched(
    hub: list[tuple[str, str]], release: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        l2.load_saes(release, **options)
    assert not hub


@needs_sae_lens
def test_an_sae_of_a_release_that_reads_other_positions_is_refused(hub: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"blocks.12.hook_resid_post of temporal-sae-gemma-2-2b can't be used: a temporal SAE"):
        l2.load_saes("temporal-sae-gemma-2-2b", layers=12)


@needs_sae_lens
def test_a_layer_among_several_widths_is_not_chosen_for_the_user() -> None:
    assert _release_ids("gpt2-small-res-jb", [2], None) == ["blocks.3.hook_resid_pre"]
    with pytest.raises(ValueError, match="6 SAEs whose names hold layer 12: give .* of layer_12/width_16k/canonical, "):
        _release_ids("gemma-scope-2b-pt-res-canonical", [12], None)


# The hub


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as it lies in the hub's local cache, with the network off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo, commit = tmp_path / "hub" / "models--somebody--saes", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    root = repo / "snapshots" / commit
    write_sae(make_sae("topk", 3), root / "layer_3")
    write_sae(make_sae("jumprelu", 5), root / "layer_5" / "small")
    write_sae(make_sae("gated", 5), root / "layer_5" / "large")
    write_sae(make_sae("standard", 7, hook_name="blocks.7.hook_mlp_out"), root / "mlp_7")
    return root


def test_a_hub_repository_is_read_without_saelens(cached: Path) -> None:
    (sae,) = l2.load_saes("somebody/saes", layers=3).values()
    assert torch.equal(sae.W_enc, make_sae("topk", 3).W_enc) and sae.cfg.kind == "topk"
    assert l2.load_saes("somebody/saes", sae_ids=["layer_3", "layer_5/large"])[5].cfg.kind == "gated"
    with pytest.raises(ValueError, match="somebody/saes has two SAEs of layer 5: layer_5/large and layer_5/small; give"):
        l2.load_saes("somebody/saes", layers=[5])
    with pytest.raises(ValueError, match=r"has no SAE 'layer_4'; did you mean 'layer_3'"):
        l2.load_saes("somebody/saes", sae_ids=["layer_4"])
    with pytest.raises(ValueError, match="the SAE is of 'blocks.7.hook_mlp_out'; only those of resid_post"):
        l2.load_saes("somebody/saes", sae_ids="mlp_7")
    with pytest.raises(ValueError, match="somebody/saes has no SAE of layers 9: it has 3, 5"):
        l2.load_saes("somebody/saes", layers=[9])
    with pytest.raises(ValueError, match="somebody/saes has 4 SAEs: say which"):
        l2.load_saes("somebody/saes")


@pytest.mark.parametrize(
    ("typed", "meant"), [("tiny_reasoner", "tiny-reasoner"), ("mine/saes", "mine/sae"), ("./my-sae", "my-saes")]
)
def test_a_name_of_saes_that_is_nearly_right_is_told_the_right_one(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "sae").mkdir(parents=True)
    (tmp_path / "my-saes").mkdir()
    with pytest.raises(ValueError, match=f"did you mean .*'{Path(meant).name}'"):
        l2.load_saes(typed, layers=[3])


def test_what_the_hub_does_not_have_is_said(cached: Path) -> None:
    for source in ("somebody/others", "not a/name"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{source}' here, and no such repository from the hub"):
            l2.load_saes(source, layers=[3])
    for file in cached.rglob("cfg.json"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no cfg.json in somebody/saes .* it is not in SAELens' format"):
        l2.load_saes("somebody/saes", layers=[3])


def test_a_folder_keeps_its_own_layers(tmp_path: Path) -> None:
    write_sae(make_sae("topk", 3), tmp_path / "layer_8")  # the name is somebody's; the configuration counts
    assert list(l2.load_saes(tmp_path)) == [3]
    with pytest.raises(ValueError, match="sae_ids are of a release or hub repository"):
        l2.load_saes(tmp_path, sae_ids=["layer_8"])
    config = json.loads((tmp_path / "layer_8" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"


def test_saelens_is_not_asked_for_what_is_in_a_folder(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)  # as if it were not installed
    assert list(l2.load_saes("tiny-reasoner", layers=[4, 9])) == [4, 9]
    assert list(l2.load_saes("somebody/saes", sae_ids="layer_3")) == [3]
    with pytest.raises(ImportError, match=r"'gpt2-small-res-jb' is no folder, .*needs SAELens: pip install 'tl_l2norm\[sae\]'"):
        l2.load_saes("gpt2-small-res-jb", layers=[3])


ONE_LAYER = [4, np.int64(4), [4], (4, 4), {4}, range(4, 5), np.array([4]), torch.tensor([4]), torch.tensor(4)]


@pytest.mark.parametrize("layers", ONE_LAYER, ids=repr)
def test_layers_in_any_form(layers: Any) -> None:
    assert _layer_numbers(layers) == [4]


@pytest.mark.parametrize("layers", ["late", "9", 4.0, [4.0], True, [], [None], object()], ids=lambda x: str(type(x)))
def test_what_is_no_layer_is_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match="layers are numbers, at least one, such as 3 or"):
        _layer_numbers(layers)
