"""The doctor finds what is wrong with a machine and with a model's files, and says what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tl_l2norm import cli
from tl_l2norm.experiments import machine
from tl_l2norm.experiments.doctor import examine, remedies
from tl_l2norm.experiments.model_files import Finding, model_files
from tl_l2norm.experiments.selfcheck import Check, SelfCheck
from tl_l2norm.models.sources import Source, find_source


def folder_at(place: Path) -> Path:
    """Files as a model's folder has them, in two shards."""
    place.mkdir()
    shards = {f"model-0000{i}-of-00002.safetensors": {f"w{i}": torch.zeros(10, 30)} for i in (1, 2)}
    for name, tensors in shards.items():
        save_file(tensors, place / name)
    named = {weight: name for name, tensors in shards.items() for weight in tensors}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    for name in ("config.json", "tokenizer.json"):
        (place / name).write_text("{}")
    (place / "chat_template.jinja").write_text("{{ messages }}")
    return place


def cut(place: Path) -> None:
    file = place / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def header(place: Path, says: object) -> None:
    text = json.dumps(says).encode()
    (place / "model-00001-of-00002.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut off": (cut, "a download that was cut off", "delete it and download it again"),
    "missing": (lambda p: (p / "model-00001-of-00002.safetensors").unlink(), "model-00001-of-00002.safetensors of", "again"),
    "pointer": (
        lambda p: (p / "model-00001-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "is a pointer of Git LFS",
        "git lfs pull",
    ),
    "page": (lambda p: (p / "model-00001-of-00002.safetensors").write_text("<html>"), "is no safetensors file", "again"),
    "header": (lambda p: header(p, {"w1": 3}), "is no safetensors file", "again"),
    "offsets": (lambda p: header(p, {"w1": {"shape": [3], "data_offsets": []}}), "is no safetensors file", "again"),
    "list": (lambda p: (p / "model.safetensors.index.json").write_text("[]"), "index.json can't be read", "again"),
    "index": (lambda p: (p / "model.safetensors.index.json").write_text("{"), "index.json can't be read", "again"),
    "config": (lambda p: (p / "config.json").unlink(), "no config.json", "beside the weights"),
    "weights": (lambda p: [f.unlink() for f in p.glob("*.safetensors*")], "no *.safetensors", "download the weights"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_files_is_found_and_a_whole_folder_has_none(name: str, tmp_path: Path) -> None:
    place = folder_at(tmp_path / "model")
    whole = model_files(find_source(place))
    assert whole.n_parameters == 600 and [one for one in whole.findings if one.remedy or one.is_fault] == []
    spoil, says, remedy = FAULTS[name]
    spoil(place)
    faults = [one for one in model_files(find_source(place)).findings if one.is_fault]
    assert len(faults) == 1 and says in faults[0].says and remedy in faults[0].remedy


def test_what_is_a_pity_is_no_fault(tmp_path: Path) -> None:
    place = folder_at(tmp_path / "model")
    (place / "chat_template.jinja").unlink()
    (place / "extra.safetensors").write_text("unused")  # not of the index
    (told,) = [one for one in model_files(find_source(place)).findings if one.remedy]
    assert told == Finding("tokenizer", "it has no chat template", told.remedy) and "plain text" in told.remedy
    (place / "tokenizer.json").unlink()
    assert [one.says for one in model_files(find_source(place)).findings if one.remedy] == ["none beside the weights"]


def test_a_gguf_file_begins_as_one(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for text, fault in (("GGUF and more", ""), ("<html>", "doesn't begin as"), ("version https://git-lfs.github", "pointer")):
        file.write_text(text)
        found = model_files(find_source(file)).findings[0]
        assert found.is_fault == bool(fault) and fault in found.says


def test_a_model_that_may_not_be_downloaded_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Source(kind="hub", where="nobody/no-such-model", name="no-such-model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (offline,) = model_files(hub).findings
    assert offline.is_fault and "unset HF_HUB_OFFLINE" in offline.remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert not model_files(hub).findings[0].is_fault


def test_a_package_that_is_too_old_or_missing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "requires", lambda _: ["transformers>=5", "tqdm>=4", "nowhere>=1", 'vllm>=9; extra == "vllm"'])
    monkeypatch.setattr(machine, "version", lambda name: _version(name, {"transformers": "4.57.0", "tqdm": "4.66"}))
    faults = {one.says: one.remedy for one in machine.versions() if one.is_fault}
    assert faults == {
        "transformers 4.57.0, tl_l2norm needs transformers>=5": "pip install 'transformers>=5'",
        "nowhere is not installed, tl_l2norm needs nowhere>=1": "pip install 'nowhere>=1'",
    }


def _version(name: str, there: dict[str, str]) -> str:
    if name not in there:
        raise metadata.PackageNotFoundError(name)
    return there[name]


def test_cores_memory_and_gpus_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "cpu": "150000 100000",
        "max": str(3 * 2**30),
        "now": str(2**30),
        "info": "MemAvailable: 9000000 kB",
    }.items():
        (tmp_path / name).write_text(text)
    for name, file in {"_CPU_LIMIT": "cpu", "_MEMORY_LIMIT": "max", "_MEMORY_USED": "now", "_MEMORY": "info"}.items():
        monkeypatch.setattr(machine, name, tmp_path / file)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert machine.usable_cores() == 1.5 and machine.memory() == 2 * 2**30
    assert "export OMP_NUM_THREADS=1" in [one.remedy for one in machine.devices()]
    (short,) = [one for one in machine.room(10**9, torch.float32, "cpu") if one.about == "memory" and one.is_fault]
    assert "3.7 GiB, and 2.0 GiB are free" in short.says and "--dtype bfloat16" in short.remedy
    assert not any(one.is_fault for one in machine.room(10**9, torch.bfloat16, "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "cpu")
    for cuda, hidden, says in ((None, None, "without CUDA"), ("12.8", "", "hides the GPUs"), ("12.8", None, "finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if hidden is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert [one for one in machine.devices() if one.remedy and says in one.says]


def test_the_command_says_all_of_it_and_stops_at_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder_at(tmp_path / "model")
    cut(place)
    assert cli.main(["doctor", "--model", str(place), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert all(about in said for about in ("versions", "torch", "cpu", "memory", "disk", "FAULT model-00002", "-> delete it"))
    whole = examine("tiny-reasoner", backend="bridge", dtype=torch.float32, device="cpu")
    assert whole.faults == () and "million parameters" in str(whole)


def test_each_check_that_fails_has_a_remedy() -> None:
    names = ("norms", "cache", "file: tokenizer", "something new")
    checks = tuple(Check(name=name, measured=1.0, bound=0.0, meaning="") for name in names)
    fine = Check(name="batch", measured=0.0, bound=0.0, meaning="")
    outcome = SelfCheck(checks=(*checks, fine), model="m", backend="bridge", dtype="float32", device="cpu", versions={})
    said = remedies(outcome)
    assert said.count("->") == 4 and "prepend_bos=False" in said and "batch_size=1" not in said
    assert remedies(SelfCheck(checks=(fine,), model="m", backend="b", dtype="d", device="c", versions={})) == ""
