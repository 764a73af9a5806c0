"""SAEs with random weights, of our own kind and of SAELens'."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tl_l2norm.saes.config import SaeConfig, SaeMetadata
from tl_l2norm.saes.reader import Sae

HAS_SAE_LENS = find_spec("sae_lens") is not None
if HAS_SAE_LENS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports what TransformerLens is about to remove
        import sae_lens  # noqa: F401
MAKERS = ["ours", pytest.param("SAELens", marks=pytest.mark.skipif(not HAS_SAE_LENS, reason="SAELens isn't installed"))]
needs_sae_lens = pytest.mark.skipif(not HAS_SAE_LENS, reason="SAELens isn't installed")

WIDTH, LATENTS = 48, 100


def make_sae(
    kind: str,
    layer: int,
    *,
    maker: str = "ours",
    width: int = WIDTH,
    latents: int = LATENTS,
    model_name: str | None = None,
    options: dict[str, Any] | None = None,
    **metadata: Any,
) -> Any:
    """An SAE of an architecture and input scaling, such as "topk layer_norm"; biases and thresholds are random as well."""
    name, _, scaling = kind.partition(" ")
    meta = {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": model_name, **metadata}
    own = {"normalize_activations": scaling or "none", **({"k": 7} if name == "topk" else {}), **(options or {})}
    torch.manual_seed(layer)
    if maker == "ours":
        sae: Any = Sae(SaeConfig(kind=name, d_in=width, d_sae=latents, metadata=SaeMetadata(**meta), **own))  # type: ignore[arg-type]
    else:
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import SAEMetadata

        made, config = get_sae_class(name)
        sae = made(config(d_in=width, d_sae=latents, metadata=SAEMetadata(**meta), **own))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    return sae.eval()


def config_of(sae: Sae) -> dict[str, Any]:
    """What SAELens 6 would write into `cfg.json` for one of ours."""
    config = asdict(sae.cfg)
    config["architecture"] = config.pop("kind")
    if sae.cfg.kind != "topk":
        del config["k"], config["rescale_acts_by_decoder_norm"]
    config["metadata"] = {k: v for k, v in config["metadata"].items() if v is not None} | {"sae_lens_version": "6.54.0"}
    return {**config, "dtype": "float32", "device": "cpu", "reshape_activations": "none"}


def write_sae(sae: Sae, folder: Path, config: dict[str, Any] | None = None, **changed: Any) -> Path:
    """One of ours as the two files of SAELens' format; a value of ... takes the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {**(config_of(sae) if config is None else config), **changed}
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not ...}))
    save_file({name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / "sae_weights.safetensors")
    return folder
