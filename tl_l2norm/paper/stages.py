"""The stages of the study: what is read off the model, and the tables made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from tl_l2norm.analysis.accuracy import accuracy_table
from tl_l2norm.analysis.attribution import attribute
from tl_l2norm.analysis.bound import bound_points, bound_table
from tl_l2norm.analysis.causal import causal_differences, causal_table
from tl_l2norm.analysis.correlation import METRIC_NAMES, correlation_table
from tl_l2norm.analysis.curves import layer_curve, mode_differences
from tl_l2norm.analysis.high_norm import high_norm_tokens
from tl_l2norm.analysis.latents import top_tokens
from tl_l2norm.analysis.pairing import MATCHES, shuffle_modes
from tl_l2norm.analysis.pressure_correlation import pressure_table
from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features
from tl_l2norm.analysis.rise import dynamics
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.analysis.theory import assumption_table
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.errors import MissingPackage, Unmeasurable, Unsupported
from tl_l2norm.core.storage import replace_file
from tl_l2norm.core.tables import render_table
from tl_l2norm.core.trace import Trace
from tl_l2norm.paper.claims import claims_table
from tl_l2norm.paper.readings import Modes, Readings
from tl_l2norm.paper.tables import MATCHED_FEATURES, SCHEMAS
from tl_l2norm.saes.checks import unit_directions
from tl_l2norm.saes.evaluate import evaluate_saes
from tl_l2norm.tasks.results import Result

TRAINED = "trained SAE"

_TOP_LATENTS = 3  # of each late layer whose tokens are shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """Tables of everything that was measured, and what could not be, with the reason; `analyse` makes it.

    Attributes:
        tables: by name, with the columns of `paper.tables.SCHEMAS`.
        notes: why a table is not there.
        features: reasoning features by source.
        facts: what was run.

    Examples:
        >>> dynamics = l2.analysis.dynamics(think, direct)
        >>> notes = {"causal_outcomes": "no answer is known"}
        >>> analysis = Analysis(tables={"dynamics": dynamics}, notes=notes, features={}, facts={})
        >>> analysis.claims().query("number == 12")[["verdict", "why"]].iloc[0].tolist()
        ["can't be tested here", 'no answer is known']
    """

    tables: Mapping[str, pd.DataFrame]
    """By name, with the columns of `paper.tables.SCHEMAS`, seed and model."""
    notes: Mapping[str, str]
    """Why a table is not there."""
    features: Mapping[str, ReasoningFeatures]
    """Reasoning features by source: the trained SAEs, and the controls."""
    facts: Mapping[str, str]
    """What was run."""

    @cached_property
    def _claims(self) -> pd.DataFrame:
        return claims_table(self.tables, self.notes)

    def claims(self) -> pd.DataFrame:
        """One entry per claim of the paper: number, claim, paper (its figure), measured, interval, control, n, verdict, why."""
        return self._claims.copy()

    def __repr__(self) -> str:
        """The claims and their verdicts, for a terminal."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{render_table(self._claims[['number', 'claim', 'measured', 'control', 'verdict']], width=140)}\n\n{facts}"

    def _repr_html_(self) -> str:
        return str(self._claims.to_html(index=False, escape=True, border=0))


class Study:
    """One run of the analysis: what was read off the model so far, and the tables made of it."""

    def __init__(self, readings: Readings) -> None:
        self.readings, self.options, self.seed = readings, readings.options, readings.options.seed
        self.backend, self.saes = readings.backend, readings.saes
        self.tables: dict[str, pd.DataFrame] = {}
        self.notes: dict[str, str] = {}
        self.features: dict[str, ReasoningFeatures] = {}
        self.traces: dict[str, Modes] = {}
        self.results: tuple[Result, ...] = ()

    def run(self) -> Analysis:
        """All stages, in their order."""
        stages = {"asking": self._ask, "recording": self._record, "norms": self._norms}
        if self.saes:
            stages |= {"features": self._choose, "controls": self._control, "curves": self._curves}
            stages |= {"correlations": self._correlate, "theory": self._theory}
        else:
            stages["curves"] = lambda: self._add(
                "curves", lambda: self._curves_of(self.traces[TRAINED], METRIC_NAMES).assign(source="no SAE")
            )
            self.notes |= dict.fromkeys(("features", "correlations", "bound", "assumptions"), "no SAEs were given")
        stages |= {"pressure": self._pressure, "causes": self._causes}
        with tqdm(total=len(stages), desc="analyse", unit="stage", disable=not self.options.progress) as bar:
            for name, stage in stages.items():
                bar.set_postfix_str(name)
                stage()
                bar.update()
        return Analysis(tables=self.tables, notes=self.notes, features=self.features, facts=self._facts())

    def _facts(self) -> dict[str, str]:
        b, modes = self.backend, [r.mode for r in self.results]
        return {
            "model": b.model_name,
            "backend": b.name,
            "dtype": str(b.dtype).removeprefix("torch."),
            "problems": str(len(self.readings.problems)),
            "responses": f"{modes.count('think')} thinking, {modes.count('direct')} direct",
            "sink ratio": f"{self.options.sink_ratio:g}",
            "seed": str(self.seed),
        }

    # Tables

    def _add(self, name: str, make: Callable[[], pd.DataFrame], *, of: str | None = None) -> None:
        """A table, saved at once; what it can't be made of is noted, once for all that is made `of` a missing one.

        Anything but a table that the data or the model don't allow is a bug, and ends the analysis.
        """
        if of is not None and of not in self.tables:
            return
        try:
            table = SCHEMAS[name].check(make())
        except (Unmeasurable, Unsupported) as reason:
            self.notes[name] = str(reason)
            return
        missing = {"seed": self.seed, "model": self.backend.model_name}
        self.tables[name] = table.assign(**{column: value for column, value in missing.items() if column not in table})
        if place := self.options.tables:
            place.mkdir(parents=True, exist_ok=True)
            replace_file(place / f"{name}.csv", self.tables[name].to_csv(index=False).encode())

    def _by_source(self, make: Callable[[str, Modes, ReasoningFeatures], pd.DataFrame]) -> pd.DataFrame:
        """A table of each source of features, on the problems that they were not chosen on."""
        frames = []
        for source, features in self.features.items():
            think, direct = (features.held_out(traces) for traces in self.traces[source])
            frames.append(make(source, (think, direct), features).assign(source=source))
        return pd.concat(frames, ignore_index=True)

    @property
    def _held_out(self) -> Modes:
        features = self.features[TRAINED]
        think, direct = (features.held_out(traces) for traces in self.traces[TRAINED])
        return think, direct

    # Stages

    def _ask(self) -> None:
        """Ask the problems in both modes."""
        self.results = self.readings.ask()
        self._add("accuracy", lambda: accuracy_table(self.results))
        self._add("accuracy_by_cell", lambda: accuracy_table(self.results, by=("family", "level", "mode")))

    def _record(self) -> None:
        """Record metrics and features."""
        self.traces[TRAINED] = self.readings.record(self.results)

    def _norms(self) -> None:
        """What the norms do by themselves."""
        think, direct = self.traces[TRAINED]
        seed = self.seed
        self._add("differences", lambda: self._differences((think, direct)))
        self._add("dynamics", lambda: dynamics(think, direct, seed=seed))
        self._add("dynamics_by_family", lambda: dynamics(think, direct, by=("family",), seed=seed))
        self._add("dynamics_by_level", lambda: dynamics(think, direct, by=("level",), seed=seed))
        self._add("trend", lambda: level_trend(think, direct, seed=seed))
        self._add("families", lambda: family_separation(think, direct, seed=seed))
        self._add("high_norm_tokens", lambda: high_norm_tokens(think, direct, seed=seed))
        self._add("attribution", lambda: self._attribution("l2_norm", (think, direct), None))

    def _differences(self, modes: Modes) -> pd.DataFrame:
        sources = {"as asked": modes, "shuffled modes": shuffle_modes(*modes, seed=self.seed)}
        frames = [mode_differences(*own, seed=self.seed).assign(source=source) for source, own in sources.items()]
        return pd.concat(frames, ignore_index=True)

    def _attribution(self, quantity: str, modes: Modes, features: ReasoningFeatures | None) -> pd.DataFrame:
        frames = []
        for tokens in ("read", "chosen"):
            own = attribute(*modes, quantity=quantity, features=features, tokens=tokens, seed=self.seed)  # type: ignore[arg-type]
            frames.append(own.table.assign(tokens=tokens, verdict=own.verdict))
        return pd.concat(frames, ignore_index=True)

    def _choose(self) -> None:
        """Choose reasoning features."""
        think, direct = self.traces[TRAINED]
        self.features[TRAINED] = find_reasoning_features(think, direct, seed=self.seed)
        self._add("latents", lambda: self.features[TRAINED].table)
        self._add("features", self._matched)
        self._add("top_tokens", self._top_tokens)

    def _matched(self) -> pd.DataFrame:
        """How many latents are found, and how many of them again on the other half, whichever way the modes are matched."""
        think, direct = self.traces[TRAINED]
        entries = []
        for tokens in ("read", "chosen"):
            for match in MATCHES:
                try:
                    features = find_reasoning_features(think, direct, match=match, tokens=tokens, seed=self.seed)  # type: ignore[arg-type]
                except Unmeasurable as reason:
                    self.notes[f"features, match={match!r}, tokens={tokens!r}"] = str(reason)
                    continue
                again = features.evaluate(features.held_out(think), features.held_out(direct), seed=self.seed)
                for layer, latents in features.latents.items():
                    own = again[again["layer"] == layer]
                    entries.append(
                        {
                            "match": match,
                            "tokens": tokens,
                            "layer": layer,
                            "tested": int((features.table["layer"] == layer).sum()),
                            "found": len(latents),
                            "replicated": int(own["replicated"].sum()) if len(own) else 0,
                            "median_effect": float(own["effect"].median()) if len(own) else float("nan"),
                            "n": len(features.chosen_on),
                        }
                    )
        return MATCHED_FEATURES.frame(entries, seed=self.seed, model=self.backend.model_name)

    def _top_tokens(self) -> pd.DataFrame:
        think, direct = self._held_out
        late = [layer for layer in think[0].late_layers if layer in self.saes]
        chosen = [(layer, latent) for layer in late for latent in self.features[TRAINED].latents[layer][:_TOP_LATENTS]]
        if not chosen:
            raise Unmeasurable("no reasoning feature was found in the late layers")
        return pd.concat([top_tokens([*think, *direct], *at, k=5) for at in chosen], ignore_index=True)

    def _control(self) -> None:
        """The same with untrained SAEs, on a random-weight model, and with shuffled modes."""
        think, direct = self.traces[TRAINED]
        count = {layer: len(latents) for layer, latents in self.features[TRAINED].latents.items()}
        if "untrained SAE" in self.options.controls:
            self.traces["untrained SAE"] = self.readings.with_untrained_saes((think, direct))
            self._choose_control("untrained SAE", None)
        if "random-weight model" in self.options.controls:
            self._random_weights((think, direct))
        if "shuffled modes" in self.options.controls:
            self.traces["shuffled modes"] = shuffle_modes(think, direct, seed=self.seed)
            self._choose_control("shuffled modes", count)

    def _choose_control(self, source: str, n_latents: Mapping[int, int] | None) -> None:
        chosen_on = self.features[TRAINED].chosen_on
        self.features[source] = find_reasoning_features(
            *self.traces[source], choose_on=chosen_on, n_latents=n_latents, seed=self.seed
        )

    def _random_weights(self, modes: Modes) -> None:
        try:
            self.traces["random-weight model"], twin, own_saes = self.readings.with_random_weights(modes)
        except MissingPackage as reason:
            self.notes["random-weight model"] = str(reason)
            warnings.warn(f"the control 'random-weight model' is left out: {reason}", stacklevel=5)
            return
        self._choose_control("random-weight model", None)
        features = self.features["random-weight model"]
        held_out = [t for modes in self.traces["random-weight model"] for t in features.held_out(modes)]
        self._add("explained_random", lambda: self._explained(twin, own_saes, held_out))

    def _explained(self, model: Any, saes: Mapping[int, Any], traces: Sequence[Trace]) -> pd.DataFrame:
        o = self.options
        return evaluate_saes(model, saes, traces, seed=o.seed, sink_ratio=o.sink_ratio, progress=o.progress)

    def _curves(self) -> None:
        """Curves over layers, beside their controls."""
        self._add("curves", self._all_curves)
        self._add(
            "feature_dynamics",
            lambda: self._by_source(lambda _, m, f: dynamics(*m, quantity="reasoning_sum", features=f, seed=self.seed)),
        )
        self._add("feature_attribution", lambda: self._attribution("reasoning_sum", self._held_out, self.features[TRAINED]))

    def _all_curves(self) -> pd.DataFrame:
        def of_source(source: str, modes: Modes, features: ReasoningFeatures) -> pd.DataFrame:
            return self._curves_of(
                modes, ["l2_norm", "reasoning_sum", *(METRIC_NAMES[1:] if source == TRAINED else ())], features
            )

        return self._by_source(of_source)

    def _curves_of(self, modes: Modes, names: Sequence[str], features: ReasoningFeatures | None = None) -> pd.DataFrame:
        frames = [
            layer_curve(traces, mode=mode, quantity=name, features=features, seed=self.seed).to_frame()
            for name in names
            for mode, traces in zip(("think", "direct"), modes, strict=True)
        ]
        return pd.concat(frames, ignore_index=True)

    def _correlate(self) -> None:
        """Correlations with reasoning features."""
        self._add("correlations", lambda: self._by_source(lambda _, m, f: correlation_table(m[0], f, seed=self.seed)))

    def _theory(self) -> None:
        """The theorem and its assumptions."""
        think, direct = self._held_out
        features = self.features[TRAINED]
        self._add("bound_points", lambda: bound_points(think, direct, features))
        self._add("bound", lambda: bound_table(self.tables["bound_points"], seed=self.seed), of="bound_points")
        self._add("explained", lambda: self._explained(self.backend.model, self.saes, [*think, *direct]))
        decoders = {layer: (unit_directions(sae), sae.b_dec) for layer, sae in self.saes.items()}
        shuffled = self.features.get("shuffled modes")

        def assumptions() -> pd.DataFrame:
            explained = self.tables["explained"]
            return assumption_table(think, direct, features, decoders, explained, control=shuffled, seed=self.seed)

        self._add("assumptions", assumptions, of="explained")

    def _pressure(self) -> None:
        """Optimisation pressure at the last layer."""
        self._add("pressure_tokens", lambda: self.readings.pressures(self.results))
        self._add("pressure", lambda: pressure_table(self.tables["pressure_tokens"], seed=self.seed), of="pressure_tokens")

    def _causes(self) -> None:
        """Suppression while the model thinks."""
        if self.options.quantiles:
            self._add("causal_outcomes", lambda: self.readings.outcomes(self.traces[TRAINED][0]))
        else:
            self.notes["causal_outcomes"] = "the causal test was left out (quantiles=())"
        outcomes = "causal_outcomes"
        self._add("causal", lambda: causal_table(self.tables[outcomes]), of=outcomes)
        self._add("causal_differences", lambda: causal_differences(self.tables[outcomes], seed=self.seed), of=outcomes)
