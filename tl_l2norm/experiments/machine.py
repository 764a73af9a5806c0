"""What is installed here, what the machine has, and what of it won't do."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from tl_l2norm.experiments.model_files import Finding
from tl_l2norm.models.provenance import library_versions

_EXTRAS = ("sae-lens", "vllm", "reasoning-gym", "peft")
_DRIVER = Path("/proc/driver/nvidia/version")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT, _MEMORY_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_MEMORY = Path("/proc/meminfo")
_LITTLE = 2 * 2**30


def versions() -> Iterator[Finding]:
    """Of Python, the packages that norms depend on, and extras; those that tl_l2norm can't run with are faults."""
    own = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    yield Finding("versions", f"Python {platform.python_version()}, {own}")
    there = [f"{name} {number}" for name in _EXTRAS if (number := _version(name))]
    missing = ", ".join(name for name in _EXTRAS if not _version(name))
    yield Finding("extras", ", ".join(there or ["none"]) + (f"; not installed: {missing}" if missing else ""))
    yield from _unmet()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _unmet() -> Iterator[Finding]:
    """Requirements of the library that what is installed doesn't meet."""
    from packaging.requirements import Requirement

    try:
        given = requires("tl_l2norm") or []
    except PackageNotFoundError:  # run from a checkout that isn't installed
        return
    for requirement in map(Requirement, given):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = _version(requirement.name)
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            says = f"{requirement.name} {here or 'is not installed'}, tl_l2norm needs {requirement.name}{requirement.specifier}"
            yield Finding("versions", says, f"pip install '{requirement.name}{requirement.specifier}'", True)


def devices() -> Iterator[Finding]:
    """Processors and GPUs, and what keeps torch from them."""
    cores, threads = usable_cores(), torch.get_num_threads()
    yield Finding("cpu", f"{cores:g} cores, torch uses {threads} threads")
    if threads > max(1.0, cores):
        yield Finding("cpu", f"{threads} threads wait for {cores:g} cores", f"export OMP_NUM_THREADS={max(1, int(cores))}")
    yield from _gpus()


def usable_cores() -> float:
    """Those that this process may use, by its affinity and its container's limit."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(_CPU_LIMIT).partition(" ")
    return min(float(own), int(quota) / int(period)) if quota.isdigit() and period.isdigit() else float(own)


def _gpus() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding(f"cuda:{index}", f"{name}, {gib(free)} of {gib(total)} free")
        return
    mps = torch.backends.mps.is_available()
    yield Finding("gpu", "mps (give --device mps)" if mps else "none that torch sees")
    if not _DRIVER.exists() and shutil.which("nvidia-smi") is None:
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield Finding("gpu", "an NVIDIA driver is here, and torch is a build without CUDA", remedy)
    elif hidden is not None and hidden.strip() in ("", "-1"):
        yield Finding("gpu", f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs", "unset CUDA_VISIBLE_DEVICES")
    else:
        says = f"an NVIDIA driver is here, and torch (CUDA {torch.version.cuda}) finds no GPU"
        yield Finding("gpu", says, "compare nvidia-smi: the driver may be older than that CUDA, or the GPU lent to nobody")


def memory() -> int | None:
    """Bytes that this process may still take; None where the machine doesn't say."""
    free = [int(line.split()[1]) * 1024 for line in _text(_MEMORY).splitlines() if line.startswith("MemAvailable:")]
    limit, used = _text(_MEMORY_LIMIT), _text(_MEMORY_USED)
    if limit.isdigit() and used.isdigit():
        free.append(int(limit) - int(used))
    return min(free, default=None)


def room(n_parameters: int | None, dtype: torch.dtype, device: str | None) -> Iterator[Finding]:
    """Whether a model of so many parameters fits, here and where it will run; and whether the disk has room."""
    free = memory()
    if free is not None:
        yield Finding("memory", f"{gib(free)} free")
    if n_parameters is not None:
        need = n_parameters * dtype.itemsize
        yield Finding("weights", f"{n_parameters / 1e6:,.1f} million parameters, {gib(need)} as {str(dtype)[6:]}")
        if free is not None and need > free:
            half = ", or --dtype bfloat16, which halves it" if dtype.itemsize > 2 else ""
            remedy = f"free some, take a smaller model{half}"
            yield Finding("memory", f"the weights need {gib(need)}, and {gib(free)} are free", remedy, True)
        on_gpu = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
        if on_gpu and need > (there := torch.cuda.mem_get_info(device)[0]):
            yield Finding("memory", f"the weights need {gib(need)}, the GPU has {gib(there)} free", "--device cpu", True)
    yield from _disk()


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = next(folder for folder in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if folder.exists())
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{gib(free)} free at {HF_HUB_CACHE}, where downloads go")
    if free < _LITTLE:
        yield Finding("disk", "little room for downloads", "export HF_HOME=... to a larger disk, or `hf cache prune`")


def gib(n_bytes: int) -> str:
    """Bytes as text."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
