"""Arms of an evaluation: what is done to a model, or made of its responses, as values."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from tl_l2norm.analysis.arms import Claim, Comparison
from tl_l2norm.core.arguments import as_integer, as_names, as_number, check_choice, check_text, one_or_several
from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.layers import Layers, check_layers
from tl_l2norm.core.thresholds import AdaptiveIQR, Thresholds
from tl_l2norm.core.trace import Trace
from tl_l2norm.experiments.scores import SCORES
from tl_l2norm.experiments.selection import by_layer
from tl_l2norm.experiments.settings import settings_of
from tl_l2norm.interventions.base import Intervention
from tl_l2norm.interventions.log import Log
from tl_l2norm.recording.sampling import Sampling
from tl_l2norm.tasks.problems import unknown

BASELINE = "baseline"
ORACLE = "oracle"
"""The selection that sees the answers: a bound, and no arm to test."""

Given = Intervention | Sequence[Intervention] | Callable[..., Any] | None
"""Interventions, or a function from the calibration's traces to them; of an arm that is matched to another, from those and
that one's log."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One way of getting answers out of a model, to be held against others on the same problems.

    Attributes:
        name: of which an evaluation has one.
        interventions: what acts on the residual stream, in this order; or a function that makes it of the calibration's traces,
            such as `lambda traces: l2.ALRR(l2.iqr_thresholds(traces))`.
        sampling: temperature, top_k and top_p, as a dict; by default the evaluation's.
        selection: a score of `select`: one of `n` responses is the answer. None: each response is one, and accuracy their mean.
        n: responses to each problem; by default the evaluation's.
        max_new_tokens: of a response; by default the evaluation's.
        thresholds: of the selection: by layer, or a function of the calibration's traces such as `l2.iqr_thresholds`. By
            default that one, where there is a calibration, else `select`'s own.
        layers: of the selection.
        control: arms that spend the same elsewhere: a claim has to hold against the baseline and against each of them.
        match: the arm whose log this one's interventions are made of, by a function `(traces, log)`, such as
            `lambda traces, log: l2.Suppression(tau, which="matched", match=log)`.
        claim: what is said of it: "helps", or "no harm" within `margin`.
        margin: of claim="no harm": a loss of accuracy that large would be one.
        calibrated_on: ids of the problems that its settings were chosen on; `tune` and a calibration note theirs.
        tried: how many settings were tried there.
        questions: `question_key` of those problems, by which they are known under another family; `tune` notes theirs.

    Raises:
        ValueError: what can't be an arm; the message says why.

    Examples:
        >>> l2.Arm("vote", selection="majority", n=8, sampling={"temperature": 0.8})
        Arm('vote', sampling={'temperature': 0.8}, selection='majority', n=8)
    """

    name: str
    interventions: Given = ()
    _: KW_ONLY
    sampling: Sampling | Mapping[str, Any] | None = None
    selection: str | None = None
    n: int | None = None
    max_new_tokens: int | None = None
    thresholds: Mapping[int, float] | Callable[[Sequence[Trace]], Thresholds] | None = None
    layers: Layers = "late"
    control: str | Sequence[str] = ()
    match: str | None = None
    claim: Claim = "helps"
    margin: float | None = None
    calibrated_on: Iterable[str] = ()
    tried: int = 0
    questions: Iterable[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_text("the name of an arm", self.name)
        if not self.name.strip():
            raise InputError("an arm needs a name")
        if self.match is not None:
            check_text(f"match of arm {self.name!r}", self.match)
        fields: dict[str, Any] = {
            "interventions": self._as_interventions(),
            "sampling": self._as_sampling(),
            "control": as_names("control", self.control),
            "calibrated_on": frozenset(one_or_several(self.calibrated_on, str)),
            "tried": as_integer("tried", self.tried, least=0),
            "questions": frozenset(one_or_several(self.questions, str)),
        }
        fields |= {
            name: as_integer(name, value, least=1)
            for name in ("n", "max_new_tokens")
            if (value := getattr(self, name)) is not None
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check_selection()
        self._check_claim()

    def _as_interventions(self) -> Any:
        given = self.interventions
        if not isinstance(given, Intervention) and callable(given):
            return given
        if self.match is not None:
            raise InputError(
                f"arm {self.name!r} is matched to {self.match!r}: its interventions are made of that arm's log by a function "
                "(traces, log)"
            )
        interventions = one_or_several(given, Intervention)
        for x in interventions:
            if not isinstance(x, Intervention):
                raise InputTypeError(f"arm {self.name!r}: an intervention is an Intervention such as l2.ALRR, got {x!r:.80}")
            self._check_adaptive(x)
        return interventions

    def _check_adaptive(self, x: Intervention) -> None:
        if isinstance(x.thresholds, AdaptiveIQR) and x.thresholds.scope == "run":
            raise InputError(
                f"arm {self.name!r}: the threshold of {x!r} follows all that is generated, so that a response hangs on those "
                "before it: take AdaptiveIQR(scope='sequence'), or thresholds of a calibration"
            )

    def _as_sampling(self) -> Sampling | None:
        given = self.sampling
        if given is None or isinstance(given, Sampling):
            return given
        if not isinstance(given, Mapping):
            raise InputTypeError(f"arm {self.name!r}: sampling is a dict such as {{'temperature': 0.8}}, got {given!r:.80}")
        known = [f.name for f in dataclasses.fields(Sampling)]
        if odd := [name for name in given if name not in known]:
            raise InputError(f"arm {self.name!r}: " + unknown("option of sampling", str(odd[0]), known))
        return Sampling(**given)

    def _check_selection(self) -> None:
        check_layers(self.layers)
        if self.selection is None:
            if self.thresholds is not None or self.layers != "late":
                raise InputError(f"arm {self.name!r}: thresholds and layers are of a selection; say which, selection=...")
            return
        check_text("selection", self.selection)
        if self.selection not in SCORES:
            raise InputError(f"arm {self.name!r}: " + unknown("score", self.selection, SCORES))
        if self.selection == "random":
            raise InputError(
                f"arm {self.name!r}: a random choice is right as often as the responses are: the same arm without selection is "
                "its expectation"
            )
        if not callable(self.thresholds):
            try:
                object.__setattr__(self, "thresholds", by_layer(self.thresholds))
            except InputError as error:
                raise type(error)(f"arm {self.name!r}: {error}") from error

    def _check_claim(self) -> None:
        check_choice("claim", self.claim, ("helps", "no harm"))
        if (self.margin is None) != (self.claim == "helps"):
            raise InputError(
                f"arm {self.name!r}: claim='no harm' needs a margin of accuracy, such as 0.05, and no other claim has"
            )
        if self.margin is not None and not 0 < as_number("margin", self.margin) < 1:
            raise InputError(f"arm {self.name!r}: margin is a loss of accuracy between 0 and 1, got {self.margin}")

    def __repr__(self) -> str:
        """The parameters that are not their defaults, in one line."""
        told = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)[1:] if f.repr]
        said = [f"{f.name}={_shown(value)}" for f, value in told if value not in (f.default, frozenset(), ())]
        return f"Arm({', '.join([repr(self.name), *said])})"

    def sampled(self, default: Sampling) -> Sampling:
        """How it samples, where the evaluation does it so."""
        return self.sampling if isinstance(self.sampling, Sampling) else default

    @property
    def needs_calibration(self) -> bool:
        """Whether something of it is made of a calibration's traces."""
        return callable(self.thresholds) or (callable(self.interventions) and self.match is None)

    def made_of(self, traces: Sequence[Trace], problems: Iterable[str]) -> Arm:
        """The arm with what it makes of a calibration's traces, and the ids of those problems."""
        changes: dict[str, Any] = {}
        if callable(self.interventions) and self.match is None:
            changes["interventions"] = self._by(self.interventions, traces)
        if callable(self.thresholds):
            changes["thresholds"] = self._by(self.thresholds, traces)
        return dataclasses.replace(self, **changes, calibrated_on=frozenset(self.calibrated_on) | frozenset(problems))

    def _by(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a function of the arm makes; what goes wrong in it is said with the arm's name."""
        try:
            made = function(*given)
        except InputError as error:
            raise type(error)(f"arm {self.name!r}: {error}") from error
        except Exception as error:
            error.add_note(f"in the function of arm {self.name!r}")
            raise
        if made is None:
            raise InputError(f"arm {self.name!r}: its function returned nothing: let it return interventions, or () for none")
        if isinstance(made, type):
            raise InputError(f"arm {self.name!r}: its function returned the class {made.__name__}: let it return one, made")
        return made

    def acts(self, traces: Sequence[Trace] = (), log: Log | None = None) -> tuple[Intervention, ...]:
        """The interventions; of a matched arm those that it makes of this log."""
        if not callable(self.interventions):
            return one_or_several(self.interventions, Intervention)
        made = one_or_several(self._by(self.interventions, traces, log), Intervention)
        for x in made:
            if not isinstance(x, Intervention):
                raise InputTypeError(f"arm {self.name!r}: the function made {x!r:.80} of the log, which is no Intervention")
            self._check_adaptive(x)
        return made

    def prompts(self, acts: Sequence[Intervention] = ()) -> frozenset[str]:
        """`prompt_key` of all prompts that its thresholds were taken from, as far as they say; `acts`: what a function made."""
        own = acts if callable(self.interventions) else self.acts()
        taus = [self.thresholds, *(x.thresholds for x in own)]
        return frozenset().union(*(tau.prompts for tau in taus if isinstance(tau, Thresholds)))

    def settings(self) -> dict[str, Any]:
        """All of it as JSON holds it; a matched arm's interventions are said where its log is."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "questions"}  # told by their ids
        if callable(self.interventions):
            fields["interventions"] = None
        return {name: settings_of(value) for name, value in fields.items()}


def _shown(value: Any) -> str:
    if isinstance(value, Sampling):
        return repr({f.name: own for f in dataclasses.fields(value) if (own := getattr(value, f.name)) != f.default})
    if isinstance(value, frozenset):
        return f"{len(value)} problems"
    return getattr(value, "__name__", "a function") if callable(value) else repr(value)


def arms_of(given: Any, *, least: int = 2, tested: bool = True) -> tuple[Arm, ...]:
    """Arms as they are run, the baseline first: the one of that name, else the first given.

    Args:
        given: one or several.
        least: how many.
        tested: whether they are held against the baseline.

    Raises:
        InputError: too few, two of one name, one that is held against or matched to an arm that isn't there, an oracle first, a
            baseline of which something is claimed.
    """
    arms = one_or_several(given, Arm)
    if odd := [arm for arm in arms if not isinstance(arm, Arm)]:
        raise InputTypeError(f"arms are l2.Arm(name, interventions, ...), got {odd[0]!r:.80}")
    if not arms:
        raise InputError("no arms given")
    names = [arm.name for arm in arms]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"two arms are called {twice[0]!r}: give each a name of its own")
    if len(arms) < least:
        raise InputError(
            f"{names[0]!r} is the one arm: give a baseline, such as l2.Arm('baseline'), and what is held against it"
        )
    for arm in arms:
        for what, others in (("control", arm.control), ("match", [arm.match] if arm.match else [])):
            for other in others:
                if other not in names or other == arm.name:
                    raise InputError(f"arm {arm.name!r}: {what}={other!r} is no other arm of these: {', '.join(names)}")
    matched = {arm.name for arm in arms if arm.match}
    if chained := [arm for arm in arms if arm.match in matched]:
        raise InputError(
            f"arm {chained[0].name!r} is matched to {chained[0].match!r}, which is matched to another: match it to that"
        )
    ordered = tuple(sorted(arms, key=lambda arm: arm.name != BASELINE))
    if ordered[0].selection == ORACLE:
        raise InputError(f"arm {ordered[0].name!r} is the baseline and selects by the answers, which nothing is held against")
    if tested and (ordered[0].control or ordered[0].claim != "helps"):
        raise InputError(
            f"arm {ordered[0].name!r} is the baseline, of which nothing is claimed: leave out its control= and claim=, or give "
            "another baseline"
        )
    return ordered


def comparisons(arms: Sequence[Arm], same_responses: Callable[[Arm, Arm], bool]) -> tuple[Comparison, ...]:
    """What each arm but the baseline is held against.

    Args:
        arms: the baseline first.
        same_responses: whether two arms have the very same responses.
    """
    by_name = {arm.name: arm for arm in arms}
    return tuple(
        Comparison(
            arm=arm.name,
            against=(against := tuple(dict.fromkeys([arms[0].name, *arm.control]))),
            chosen_from=frozenset(
                name
                for name in against
                if arm.selection is not None and by_name[name].selection is None and same_responses(arm, by_name[name])
            ),
            claim=arm.claim,
            margin=arm.margin,
            tested=arm.selection != ORACLE,
        )
        for arm in arms[1:]
    )
