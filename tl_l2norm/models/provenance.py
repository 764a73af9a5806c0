"""Where norms of a model come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from tl_l2norm.core.identity import Identity
from tl_l2norm.core.provenance import Provenance
from tl_l2norm.models.described import Described


def provenance(
    model: Described,
    identity: Identity,
    *,
    sink_ratio: float,
    seed: int | None = None,
    temperature: float | None = None,
    interventions: Sequence[object] = (),
) -> Provenance:
    """Model, dtype, versions and settings that norms were recorded with, as every trace keeps them.

    Args:
        model: what ran.
        identity: what it was when they were recorded.
        sink_ratio: over how many times the prompt's median a norm was a sink's.
        seed: of the responses.
        temperature: of the responses.
        interventions: that were at work, kept as text.
    """
    return Provenance(
        model=model.model_name,
        backend=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        n_layers=model.n_layers,
        centred=model.centred,
        sink_ratio=sink_ratio,
        versions=library_versions() | dict(model.versions),
        options=model.options,
        seed=seed,
        temperature=temperature,
        interventions=tuple(map(str, interventions)),
        fingerprint=identity.weights,
        tokenizer=identity.tokenizer,
        chat_template=identity.chat_template,
        foreign_hooks=identity.foreign_hooks,
    )


def library_versions() -> dict[str, str]:
    """Versions of the packages that norms depend on, by name."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in ("tl_l2norm", "transformer-lens", "transformers", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            versions[package] = "unknown"
    return versions
