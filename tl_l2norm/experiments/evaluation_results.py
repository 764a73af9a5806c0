"""What came of an evaluation: outcomes, and the tables that are made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import escape

from tl_l2norm.analysis.arm_curves import ARM_CURVES, suppressed_table
from tl_l2norm.analysis.arms import (
    ARM_OUTCOMES,
    HELPS,
    Comparison,
    arm_table,
    as_read,
    baseline_notes,
    cost_table,
    cut_off_notes,
)
from tl_l2norm.core.arguments import as_path, as_seed
from tl_l2norm.core.errors import InputError, MissingFile
from tl_l2norm.core.storage import replace_file
from tl_l2norm.core.tables import html_table, render_table
from tl_l2norm.interventions.suppress import Suppression
from tl_l2norm.tasks.results import Result

FORMAT, FORMAT_VERSION = "tl_l2norm.evaluation", 1
_NEARLY = 0.9  # of what a control was to change
_CONTENT = ("settings", "comparisons", "notes", "seed", "outcomes", "decisions")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """Arms on the same problems; prints as tables.

    Attributes:
        outcomes: one entry per answer: arm, prompt (the problem's id), family, level, sample, correct, responses (written for
            it), cut_off (share of them), tokens, reruns, layer_passes, seconds, seed, model.
        decisions: how often each arm's interventions decided what: arm, intervention, decision, fired, n.
        comparisons: what each arm is held against.
        settings: all that the outcomes depend on, as JSON holds it: model, problems, limits, arms, and on which problems these
            were calibrated or tuned.
        notes: what was said before the run: what it can see, and how many settings were tried.
        seed: of sampling, resamples and signs.
        samples: by arm, its thinking responses where their norms are kept, as they are where a selection chooses among them:
            what `sample_thinking` returns, for `analysis.correctness_samples`. They aren't saved with the tables; the same call
            of `evaluate` has them again from its folder.
        curves: accuracy of each arm that selects against the number of responses that it selects from, expected over all
            subsets: arm, responses, accuracy, low, high, n (problems).

    Examples:
        >>> arms = [l2.Arm("baseline"), l2.Arm("scaled", l2.Suppression({11: 500.0}))]
        >>> found = l2.evaluate(model, l2.make_mixture(2, families="compact"), arms, max_new_tokens=40, progress=False)
        >>> found.to_frame()[["arm", "n", "accuracy", "verdict"]]
                arm  n  accuracy           verdict
        0  baseline  2       1.0          baseline
        1    scaled  2       1.0  too few problems
    """

    outcomes: pd.DataFrame
    decisions: pd.DataFrame
    comparisons: tuple[Comparison, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    seed: int
    samples: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=lambda: ARM_CURVES.frame([]))

    def to_frame(self, by: str | Sequence[str] = ()) -> pd.DataFrame:
        """Accuracy, paired differences and verdicts, see `tl_l2norm.analysis.arm_table`; by "family", "level" or both."""
        return arm_table(self.outcomes, self.comparisons, by=by, seed=self.seed)

    def costs(self) -> pd.DataFrame:
        """What an answer of each arm costs, see `tl_l2norm.analysis.cost_table`."""
        return cost_table(self.outcomes)

    def suppressed(self) -> pd.DataFrame:
        """Accuracy of arms that do nothing but suppress, against the share of tokens that they changed at the layers that they
        act on, a token at two layers counted twice: arm, kind (which, and what became of them), share, accuracy, low, high, n;
        empty where no two of them changed another share.
        """
        return self._suppressed(self.to_frame())

    @property
    def helpful(self) -> tuple[str, ...]:
        """Arms whose verdict is that they help."""
        table = self.to_frame()
        return tuple(dict.fromkeys(table.loc[table["verdict"] == HELPS, "arm"]))

    def _suppressed(self, table: pd.DataFrame) -> pd.DataFrame:
        return suppressed_table(table, self.decisions, _suppressing(self.settings["arms"]))

    def _tables(self, found: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """By title, as they are shown; `found`: `to_frame()`, which takes a while."""
        table = as_read(found)
        shown = table[["arm", "against", "n", "accuracy"]].assign(
            difference=[_interval(entry) for entry in table.to_dict("records")],
            **{name: table[name] for name in ("better", "worse", "p_holm", "verdict")},
        )
        tables = {
            "accuracy, paired differences with 95% intervals": shown,
            "an answer's cost": self.costs(),
            "accuracy of selecting among so many responses": self.curve_frame(),
            "accuracy by share of tokens and layers suppressed": self._suppressed(found),
            "what interventions decided": self.decisions,
        }
        return {name: table for name, table in tables.items() if len(table)}

    def curve_frame(self) -> pd.DataFrame:
        """The accuracies of `curves` side by side, an entry for each arm that selects and a column for each number."""
        wide = self.curves.pivot(index="arm", columns="responses", values="accuracy").add_prefix("n=")
        return wide.loc[list(dict.fromkeys(self.curves["arm"]))].rename_axis(columns=None).reset_index()

    def _head(self, found: pd.DataFrame) -> list[str]:
        first = self.outcomes.iloc[0]
        n = self.outcomes["prompt"].nunique()
        head = f"{first['model']}, {n} problems, {self.settings['mode']}, seed {self.seed}"
        return [head, *self.notes, *(f"WARNING: {note}" for note in warning_notes(self, found))]

    def __str__(self) -> str:
        """What was asked, what can be seen, and the tables."""
        found = self.to_frame()
        tables = (render_table(table, title=name, width=140) for name, table in self._tables(found).items())
        return "\n\n".join(["\n".join(self._head(found)), *tables])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        found = self.to_frame()
        parts = [f"<p>{escape(line)}</p>" for line in self._head(found)]
        parts += [f"<p>{name}</p>{html_table(table)}" for name, table in self._tables(found).items()]
        return "".join(parts)

    def save(self, path: str | Path) -> Path:
        """Write everything to one JSON file; the tables are made of it again, bit for bit.

        Raises:
            ValueError: a folder.
        """
        file = as_path("path", path)
        if file.is_dir():
            raise InputError(f"{file} is a folder: name a file, such as {file / 'results.json'}")
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "settings": self.settings,
            "comparisons": [_plain(c) for c in self.comparisons],
            "notes": self.notes,
            "seed": self.seed,
            "outcomes": self.outcomes.to_dict("list"),
            "decisions": self.decisions.to_dict("list"),
            "curves": self.curves.to_dict("list"),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(content, ensure_ascii=False).encode())
        return file

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: a damaged or foreign file.
        """
        file = as_path("path", path)
        if not file.is_file():
            raise MissingFile(f"no results at {file}: give the file that Results.save wrote")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is damaged: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{file} was not written by Results.save")
        if content.get("version") != FORMAT_VERSION:
            raise InputError(f"{file} has format version {content.get('version')}, this library reads {FORMAT_VERSION}")
        if lacking := [name for name in _CONTENT if name not in content]:
            raise InputError(f"{file} is damaged: it lacks {', '.join(lacking)}")
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file} is damaged: {error!r}; the same call of evaluate writes it anew from its folder"
            ) from error

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Results:
        outcomes, settings = pd.DataFrame(content["outcomes"]), content["settings"]
        if outcomes.empty or not outcomes["correct"].map(lambda own: isinstance(own, bool)).all():
            raise ValueError("it has no outcomes that are right or wrong")
        if lacking := [name for name in ("mode", "arms") if name not in dict(settings)]:
            raise ValueError(f"its settings lack {', '.join(lacking)}")
        return cls(
            outcomes=ARM_OUTCOMES.frame(outcomes),
            decisions=pd.DataFrame(content["decisions"]),
            comparisons=tuple(_comparison(c) for c in content["comparisons"]),
            settings=settings,
            notes=tuple(content["notes"]),
            seed=as_seed(content["seed"]),
            curves=ARM_CURVES.frame(pd.DataFrame(content.get("curves", []))),  # of a version that made none
        )


def warning_notes(results: Results, table: pd.DataFrame) -> list[str]:
    """What results begin with, in words: what was cut off, a baseline without room, arms that changed nothing, controls that
    changed less than they were to; `table`: `results.to_frame()`.
    """
    idle = ", ".join(map(repr, idle_arms(results.decisions)))
    idle_notes = [f"nothing was changed by {idle}: look at the thresholds and at decisions"] if idle else []
    return [*cut_off_notes(table), *baseline_notes(table), *idle_notes, *_short_of_match(results)]


def _short_of_match(results: Results) -> list[str]:
    """Of controls that were to change as many tokens as the arm they are matched to, and found too few."""
    changed, arms = _changed(results.decisions), results.settings["arms"]
    pairs = [(name, own["match"]) for name, own in arms.items() if own["match"] and name in arms[own["match"]]["control"]]
    return [
        f"{name!r} changed {changed[name]} tokens and layers where {other!r}, to which it is matched, changed {changed[other]}"
        ": too few others are left, so that it is no equal control"
        for name, other in pairs
        if {name, other} <= set(changed) and changed[name] < _NEARLY * changed[other]
    ]


def _changed(decisions: pd.DataFrame) -> dict[str, int]:
    """How many decisions of each arm changed something."""
    if decisions.empty:
        return {}
    counts = decisions["n"].where(decisions["fired"].astype(bool), 0).groupby(decisions["arm"], sort=False).sum()
    return {str(arm): int(n) for arm, n in counts.items()}


def idle_arms(decisions: pd.DataFrame) -> list[str]:
    """Those whose interventions changed nothing."""
    return [arm for arm, n in _changed(decisions).items() if n == 0]


def _suppressing(arms: Mapping[str, Any]) -> dict[str, str]:
    """What arms suppress and how, of those that do nothing else; `arms`: their settings."""
    acts = {name: arm["interventions"] for name, arm in arms.items() if arm["selection"] is None}
    alone = {name: own[0] for name, own in acts.items() if len(own) == 1 and own[0]["kind"] == Suppression.__name__}
    return {name: f"{one['which']}, {one['how']}" for name, one in alone.items()}


def _interval(entry: Mapping[Any, Any]) -> str:
    if entry["against"] == "":
        return ""
    return f"{entry['difference']:+.2f} [{entry['difference_low']:+.2f}, {entry['difference_high']:+.2f}]"


def _plain(comparison: Comparison) -> dict[str, Any]:
    fields = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}
    return fields | {"against": list(comparison.against), "chosen_from": sorted(comparison.chosen_from)}


def _comparison(plain: Mapping[str, Any]) -> Comparison:
    made = {"against": tuple(plain["against"]), "chosen_from": frozenset(plain["chosen_from"])}
    return Comparison(**{**plain, **made})
