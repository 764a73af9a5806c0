"""Fixtures: real models, each on the backends that know it; a test that leaves a hook behind fails."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on models this small threads only wait for each other

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests import checking

checking.install()  # before anything of the library is imported

from tests import models  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    if models.SCRATCH not in os.environ:  # workers inherit it, and whoever runs the suite in parts can name one folder for all
        scratch = tempfile.TemporaryDirectory(prefix="tl_l2norm_models_")
        os.environ[models.SCRATCH] = scratch.name
        config.add_cleanup(scratch.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A law on many models is slow but on the quick ones; it keeps at least one on each backend."""
    laws: dict[tuple[str, str], dict[models.Case, list[pytest.Item]]] = {}
    for item in items:
        for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
            if isinstance(value, models.Case):
                law = laws.setdefault((item.nodeid.partition("[")[0], value.backend), {})
                law.setdefault(value, []).append(item)
    for law in laws.values():
        quick = models.QUICK.intersection(law) or {next(iter(law))}
        for case in law.keys() - quick:
            for item in law[case]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what imports left stays; looking through it for garbage, over and over, took a seventh of the tests' time


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _parts() -> Iterator[None]:
    """What is taken in parts of so many numbers is taken in as many parts as with a usual vocabulary, 12 times as large."""
    from tl_l2norm.models import fingerprint
    from tl_l2norm.recording import answers, metrics, pressure, reading_signals

    with pytest.MonkeyPatch.context() as patch:
        for module in (answers, fingerprint, metrics, pressure, reading_signals):
            for name in {"_AT_ONCE", "_IN_CACHE", "_PIECE"} & set(vars(module)):
                patch.setattr(module, name, getattr(module, name) * models.VOCABULARY // 49152)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], str]:
    """`once(name, make)`: the text that `make` gives, made by one process of a run for all."""
    own = tmp_path_factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def text(name: str, make: Callable[[], str]) -> str:
        file = place / name
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_text(make())
        return file.read_text()

    return text


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    yield
    assert models.hooks_left() == 0, "a hook was left on a shared model"


@pytest.fixture(params=models.CASES, ids=str)
def case(request: pytest.FixtureRequest) -> models.Case:
    return request.param


@pytest.fixture
def model(case: models.Case) -> Any:
    return models.use(case)


@pytest.fixture
def plain(case: models.Case) -> Any:
    return models.hugging_face(case.architecture)


@pytest.fixture(params=[c for c in models.TINY if c.architecture in ("llama", "gpt2")], ids=str)
def tiny_case(request: pytest.FixtureRequest) -> models.Case:
    return request.param


@pytest.fixture
def tiny(tiny_case: models.Case) -> Any:
    """A tiny random model, on each backend."""
    return models.use(tiny_case)


@pytest.fixture
def smollm2() -> Any:
    """SmolLM2 on the bridge."""
    return models.use(models.Case("smollm2", "bridge"))


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    return models.tokenizer()
