"""Examine a machine and a model's files, and say what to do about each fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.machine import devices, room, versions
from tl_l2norm.experiments.model_files import Finding, model_files
from tl_l2norm.experiments.selfcheck import SelfCheck
from tl_l2norm.models.hooked import require_hooked
from tl_l2norm.models.sources import find_source

_OTHER = "try the other --backend and --dtype float32; if it stays, it is a bug: report it with this output"
_REMEDIES = {
    "norms": _OTHER,
    "logits": _OTHER,
    "hooks left": "it is a bug: report it with this output",
    "cache": "transformers 5.23 and 5.24 are known to decode right: install one of them, or generate with max_new_tokens=1",
    "batch": "give batch_size=1 (--batch-size 1)",
    "logit lens": "leave output entropies and optimisation pressure out; norms don't depend on it",
    "file: tokenizer": "load the tokenizer that lies beside the weights; prepend_bos=False where only BOS differs",
    "file: norms": _OTHER,
    "file: logits": _OTHER,
    "file: turn ends": "give stop=[...] with the token ids that are missing",
    "file: weights": "the files may be another model's: compare config.json with the model's page",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found before a model is loaded."""

    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What keeps the model from being loaded, or its norms from being right."""
        return tuple(one for one in self.findings if one.is_fault)

    def __str__(self) -> str:
        """A line for each, and under it what to do."""
        return "\n".join(_lines(self.findings))


def examine(source: str | Path, *, backend: str, dtype: torch.dtype, device: str | None) -> Examination:
    """Versions, devices, memory and the model's files; nothing is loaded or downloaded.

    Raises:
        ValueError: no model can be called that.
        FileNotFoundError: a path that isn't there; or a short name whose files aren't installed, with how to install them.
    """
    files = model_files(find_source(source))
    findings = [*versions(), *devices()]
    if backend == "hooked":
        try:
            require_hooked()
        except InputError as error:
            findings.append(Finding("backend", "no HookedTransformer here", str(error), True))
    return Examination(findings=(*findings, *room(files.n_parameters, dtype, device), *files.findings))


def remedies(outcome: SelfCheck) -> str:
    """What to do about each check that failed; "" where none did."""
    failed = [check for check in outcome.checks if check.result == "FAIL"]
    return "\n".join(_lines([Finding(check.name, "it failed", _REMEDIES.get(check.name, _OTHER), True) for check in failed]))


def _lines(findings: list[Finding] | tuple[Finding, ...]) -> Iterator[str]:
    for one in findings:
        mark = "FAULT " if one.is_fault else "advice " if one.remedy else ""
        yield f"{one.about:<10} {mark}{one.says}"
        if one.remedy:
            yield f"{'':<10} -> {one.remedy}"
