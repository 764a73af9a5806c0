"""Arms from a TOML file, and those of the paper's methods that come with the library."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tl_l2norm.interventions
from tl_l2norm.core.arguments import as_path, as_share, check_flag
from tl_l2norm.core.errors import InputError, MissingFile
from tl_l2norm.core.thresholds import AdaptiveIQR, Thresholds, iqr_thresholds, quantile_thresholds
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.arms import Arm
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.tasks.problems import unknown

SHIPPED = Path(__file__).parent / "shipped_arms"
"""One file for each of the paper's methods."""

_RULES = {"iqr": iqr_thresholds, "quantile": quantile_thresholds}
_OPTIONS = {"iqr": ("k", "include_sinks"), "quantile": ("q", "include_sinks")}
_ARM = [f.name for f in dataclasses.fields(Arm) if f.name not in ("calibrated_on", "tried", "questions")]


def load_arms(path: str | Path) -> tuple[Arm, ...]:
    """The arms of a TOML file, or those that come with the library under a short name: alrr, erss, lrs, suppression.

    A file has one `[[arm]]` for each, with the fields of `Arm`. An intervention is a table with its `kind`, the name of its
    class, and its parameters. `thresholds` are a table: `{rule = "iqr", k = 1.5}` or `{rule = "quantile", q = 0.95}` of the
    calibration's traces, `{rule = "adaptive", scope = "sequence"}`, or values by layer, `{10 = 480.0}`. In an arm that is
    matched to another, `match = true` in an intervention is that one's log.

    Args:
        path: of the file, or a short name.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no TOML, or a name or value that no arm has; the message says where.

    Examples:
        >>> [arm.name for arm in l2.experiments.load_arms("suppression")]
        ['baseline', 'high', 'matched', 'low', 'swap', 'swap matched']
    """
    file = as_path("path", path)
    short = SHIPPED / f"{path}.toml"
    if not file.is_file() and short.is_file():
        file = short
    if not file.is_file():
        names = ", ".join(sorted(own.stem for own in SHIPPED.glob("*.toml")))
        raise MissingFile(f"no file of arms at {file}; those that come with the library are {names}")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no TOML: {error}") from error
    given = content.pop("arm", None)
    if content or not isinstance(given, list):
        odd = f", not {sorted(content)[0]!r}" if content else ""
        raise InputError(f"{file} holds arms, each under [[arm]]{odd}")
    return tuple(_arm(own, f"{file.name}, arm {i}") for i, own in enumerate(given, start=1))


def _arm(given: Any, where: str) -> Arm:
    _check_names(given, _ARM, "field of an arm", where)
    fields = dict(given)
    if "name" not in fields:
        raise InputError(f"{where}: it has no name")
    where = f"{where} ({fields['name']})"
    try:
        return _made_arm(fields, where)
    except (InputError, TypeError) as error:  # TypeError: a parameter that is missing
        said = str(error)
        raise InputError(said if said.startswith(where) else f"{where}: {said}") from error


def _made_arm(fields: dict[str, Any], where: str) -> Arm:
    if "thresholds" in fields:
        fields["thresholds"] = _thresholds(fields["thresholds"], where)
    made = _Made(tuple(_Spec.of(own, where) for own in _listed(fields.get("interventions", []))))
    if ("match" in fields) != made.matched:
        raise InputError(
            'an arm that is matched names the other one, match = "name", and has an intervention with match = true, which is '
            "that one's log; here is one without the other"
        )
    made.check()
    fields["interventions"] = made if made.waits or made.matched else made(())
    return Arm(**fields)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


@dataclass(frozen=True, slots=True)
class _OfTraces:
    """Thresholds that wait for the calibration's traces."""

    rule: str
    options: Mapping[str, Any]

    def __call__(self, traces: Sequence[Trace]) -> Thresholds:
        return _RULES[self.rule](traces, **self.options)


@dataclass(frozen=True, slots=True)
class _Spec:
    """An intervention as a file says it."""

    kind: type[Intervention]
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any, where: str) -> _Spec:
        kinds = _kinds()
        kind = given.get("kind", "") if isinstance(given, Mapping) else f"a table with its kind, not {given!r:.60}"
        if not isinstance(kind, str) or kind not in kinds:
            raise InputError(f"{where}: {unknown('kind of intervention', str(kind), kinds)}")
        own = kinds[kind]
        fields = {name: value for name, value in given.items() if name != "kind"}
        _check_names(fields, [f.name for f in dataclasses.fields(own)], f"parameter of {kind}", where)
        if "thresholds" in fields:
            fields["thresholds"] = _thresholds(fields["thresholds"], where)
        return cls(own, fields)

    def make(self, traces: Sequence[Trace], log: Log | None) -> Intervention:
        fields = dict(self.fields)
        if isinstance(fields.get("thresholds"), _OfTraces):
            fields["thresholds"] = fields["thresholds"](traces)
        if fields.get("match") is True:
            fields["match"] = log
        return self.kind(**fields)


@dataclass(frozen=True, slots=True)
class _Made:
    """What makes the interventions of an arm, of traces and, where it is matched, of a log."""

    specs: tuple[_Spec, ...]

    @property
    def waits(self) -> bool:
        """Whether traces are needed."""
        return any(isinstance(spec.fields.get("thresholds"), _OfTraces) for spec in self.specs)

    @property
    def matched(self) -> bool:
        """Whether a log is needed."""
        return any(spec.fields.get("match") is True for spec in self.specs)

    def check(self) -> None:
        """Make those that wait for thresholds alone with some, so that what else is wrong of them is said before a run."""
        for spec in self.specs:
            if isinstance(spec.fields.get("thresholds"), _OfTraces) and spec.fields.get("match") is not True:
                spec.kind(**{**spec.fields, "thresholds": Thresholds({0: 1.0})})

    def __call__(self, traces: Sequence[Trace], log: Log | None = None) -> tuple[Intervention, ...]:
        return tuple(spec.make(traces, log) for spec in self.specs)


def _thresholds(given: Any, where: str) -> Thresholds | AdaptiveIQR | _OfTraces:
    if not isinstance(given, Mapping):
        raise InputError(f'{where}: thresholds are a table, such as {{rule = "iqr", k = 1.5}}, got {given!r:.60}')
    options = {name: value for name, value in given.items() if name != "rule"}
    rule = given.get("rule")
    if rule is None:
        if odd := [name for name in options if not name.removeprefix("-").isdecimal()]:
            raise InputError(f"{where}: thresholds without a rule are by layer, such as {{10 = 480.0}}, got {odd[0]!r}")
        return Thresholds({int(layer): value for layer, value in options.items()})
    if rule == "adaptive":
        _check_names(options, [f.name for f in dataclasses.fields(AdaptiveIQR)], "option of adaptive thresholds", where)
        return AdaptiveIQR(**options)
    if not isinstance(rule, str) or rule not in _RULES:
        raise InputError(f"{where}: {unknown('rule of thresholds', str(rule), (*_RULES, 'adaptive'))}")
    _check_names(options, _OPTIONS[rule], f"option of the rule {rule!r}", where)
    as_share("q", options.get("q", 0.5))
    AdaptiveIQR(k=options.get("k", 1.5))  # has the same bound
    check_flag("include_sinks", options.get("include_sinks", False))
    return _OfTraces(rule, options)


def _check_names(given: Any, known: Sequence[str], what: str, where: str) -> None:
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: it is a table of fields, got {given!r:.60}")
    if odd := [name for name in given if name not in known]:
        raise InputError(f"{where}: {unknown(what, odd[0], known)}")


def _kinds() -> dict[str, type[Intervention]]:
    """Interventions of the library by the names of their classes."""
    place = tl_l2norm.interventions
    modules = [importlib.import_module(f"{place.__name__}.{own.name}") for own in pkgutil.iter_modules(place.__path__)]
    return {
        name: own
        for module in modules
        for name, own in vars(module).items()
        if isinstance(own, type) and issubclass(own, Intervention) and own is not Intervention
    }
