"""The stages of the study: what is read off the model, and the tables made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import pandas as pd
from tqdm.auto import tqdm

from tl_l2norm.analysis.accuracy import accuracy_table
from tl_l2norm.analysis.attribution import attribute
from tl_l2norm.analysis.bound import bound_control, bound_points, bound_table
from tl_l2norm.analysis.causal import causal_differences, causal_table
from tl_l2norm.analysis.correlation import METRIC_NAMES, correlation_table
from tl_l2norm.analysis.curves import layer_curve, mode_differences
from tl_l2norm.analysis.deconfounding import mode_effects
from tl_l2norm.analysis.high_norm import high_norm_effect, high_norm_tokens
from tl_l2norm.analysis.late import compare_late
from tl_l2norm.analysis.latents import top_tokens
from tl_l2norm.analysis.link import feature_link
from tl_l2norm.analysis.pairing import MATCHES, Match, Tokens, shuffle_modes
from tl_l2norm.analysis.pressure_correlation import pressure_table
from tl_l2norm.analysis.pull import pull_link
from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features
from tl_l2norm.analysis.rise import dynamics
from tl_l2norm.analysis.separation import family_separation
from tl_l2norm.analysis.shape import rise_shape
from tl_l2norm.analysis.split import split_thinking
from tl_l2norm.analysis.theory import assumption_table
from tl_l2norm.analysis.trend import level_trend
from tl_l2norm.core.errors import MissingPackage, Unmeasurable, Unsupported
from tl_l2norm.core.storage import replace_file
from tl_l2norm.core.tables import csv_text
from tl_l2norm.core.trace import Trace
from tl_l2norm.paper.ending import facts_of, save_rest
from tl_l2norm.paper.finding import TRAINED
from tl_l2norm.paper.readings import Modes, Readings
from tl_l2norm.paper.result import Analysis
from tl_l2norm.paper.tables import MATCHED_FEATURES, SCHEMAS
from tl_l2norm.paper.thinking import thinking_stages
from tl_l2norm.saes.checks import unit_directions
from tl_l2norm.saes.evaluate import evaluate_saes
from tl_l2norm.tasks.results import Result

_TOP_LATENTS = 3  # of each late layer whose tokens are shown


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
            stages["curves"] = lambda: self.add(
                "curves", lambda: self._curves_of(self.traces[TRAINED], METRIC_NAMES).assign(source="no SAE")
            )
            self.notes |= dict.fromkeys(("features", "correlations", "links", "bound", "assumptions"), "no SAEs were given")
        stages |= {"pressure": self._pressure, "causes": self._causes, **thinking_stages(self)}
        with tqdm(total=len(stages), desc="analyse", unit="stage", disable=not self.options.progress) as bar:
            for name, stage in stages.items():
                bar.set_postfix_str(name)
                stage()
                bar.update()
        analysis = Analysis(
            tables=self.tables,
            notes=self.notes,
            features=self.features,
            facts=facts_of(self.readings, self.results, self.tables),
        )
        if place := self.options.tables:
            save_rest(analysis, place)
        return analysis

    # Tables

    def add(self, name: str, make: Callable[[], pd.DataFrame], *, of: str | None = None) -> None:
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
            replace_file(place / f"{name}.csv", csv_text(self.tables[name]).encode())

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
        self.add("accuracy", lambda: accuracy_table(self.results))
        self.add("accuracy_by_cell", lambda: accuracy_table(self.results, by=("family", "level", "mode")))

    def _record(self) -> None:
        """Record metrics and features."""
        self.traces[TRAINED] = self.readings.record(self.results)

    def _norms(self) -> None:
        """What the norms do by themselves."""
        think, direct = self.traces[TRAINED]
        seed = self.seed
        self.add("differences", lambda: self._differences((think, direct)))
        self.add("late", lambda: compare_late(think, direct, seed=seed).table)
        self.add("dynamics", lambda: dynamics(think, direct, seed=seed))
        self.add("dynamics_by_family", lambda: dynamics(think, direct, by=("family",), seed=seed))
        self.add("dynamics_by_level", lambda: dynamics(think, direct, by=("level",), seed=seed))
        self.add("trend", lambda: level_trend(think, direct, seed=seed))
        self.add("families", lambda: family_separation(think, direct, seed=seed))
        self.add("high_norm_tokens", lambda: high_norm_tokens(think, direct, seed=seed))
        self.add("mode_effects", lambda: mode_effects(think, direct, seed=seed))
        self.add("top_effects", lambda: high_norm_effect(think, direct, seed=seed))
        self.add("shapes", lambda: rise_shape(think, direct, seed=seed))
        self.add("attribution", lambda: self._attribution("l2_norm", (think, direct), None))

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
        self.add("latents", lambda: self.features[TRAINED].table)
        self.add("features", self._matched)
        self.add("top_tokens", self._top_tokens)

    def _matched(self) -> pd.DataFrame:
        """How many latents are found, and how many of them again on the other half, whichever way the modes are matched.

        Beside them those between two parts of the same thinking responses, which no thinking can make.
        """
        modes, model = self.traces[TRAINED], self.backend.model_name
        entries = []
        for tokens in get_args(Tokens):
            split = split_thinking(*modes, tokens=tokens, seed=self.seed)
            for match in MATCHES:
                try:
                    own = self._counts(modes, match, tokens)
                except Unmeasurable as reason:
                    self.notes[f"features, match={match!r}, tokens={tokens!r}"] = str(reason)
                    continue
                try:
                    control = self._counts(split, match, tokens)[["layer", "found", "replicated"]]
                except Unmeasurable:
                    control = own[["layer"]].assign(found=float("nan"), replicated=float("nan"))
                control = control.rename(columns={"found": "split_found", "replicated": "split_replicated"})
                entries.append(own.merge(control, on="layer").assign(match=match, tokens=tokens))
        return MATCHED_FEATURES.frame(pd.concat(entries) if entries else (), seed=self.seed, model=model)

    def _counts(self, modes: Modes, match: Match, tokens: Tokens) -> pd.DataFrame:
        """Latents that are tested, found and replicated at each layer."""
        features = find_reasoning_features(*modes, match=match, tokens=tokens, seed=self.seed)
        again = features.evaluate(*(features.held_out(traces) for traces in modes), seed=self.seed)
        counts = []
        for layer, latents in features.latents.items():
            own = again[again["layer"] == layer]
            count = {"tested": int((features.table["layer"] == layer).sum()), "found": len(latents)}
            count["replicated"] = int(own["replicated"].sum()) if len(own) else 0
            effect = float(own["effect"].median()) if len(own) else float("nan")
            counts.append({"layer": layer, **count, "median_effect": effect, "n": len(features.chosen_on)})
        return pd.DataFrame(counts)

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
        self.add("explained_random", lambda: self._explained(twin, own_saes, held_out))

    def _explained(self, model: Any, saes: Mapping[int, Any], traces: Sequence[Trace]) -> pd.DataFrame:
        o = self.options
        return evaluate_saes(model, saes, traces, seed=o.seed, sink_ratio=o.sink_ratio, progress=o.progress)

    def _curves(self) -> None:
        """Curves over layers, beside their controls."""
        self.add("curves", self._all_curves)
        self.add(
            "feature_dynamics",
            lambda: self._by_source(lambda _, m, f: dynamics(*m, quantity="reasoning_sum", features=f, seed=self.seed)),
        )
        own = self.features[TRAINED]
        self.add("feature_shapes", lambda: rise_shape(*self._held_out, quantity="reasoning_sum", features=own, seed=self.seed))
        self.add("feature_attribution", self._feature_attribution)

    def _feature_attribution(self) -> pd.DataFrame:
        think, direct = self._held_out
        if not any(self.features[TRAINED].latents.get(layer) for layer in think[0].late_layers):
            raise Unmeasurable("no reasoning feature was found in the late layers")
        return self._attribution("reasoning_sum", (think, direct), self.features[TRAINED])

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
        self.add("correlations", lambda: self._of_found("correlations", correlation_table, METRIC_NAMES))
        self.add("links", lambda: self._of_found("links", feature_link, METRIC_NAMES[:1]))

    def _of_found(self, name: str, make: Callable[..., pd.DataFrame], of_controls: Sequence[str]) -> pd.DataFrame:
        """Of the norm and its rivals with features of each source; a control without features has none."""
        frames = []
        for source, features in self.features.items():
            names = METRIC_NAMES if source == TRAINED else of_controls
            try:
                table = make(features.held_out(self.traces[source][0]), features, quantities=names, seed=self.seed)
            except Unmeasurable as reason:
                if source == TRAINED:
                    raise
                self.notes[f"{name}, {source}"] = str(reason)
                continue
            frames.append(table.assign(source=source))
        return pd.concat(frames, ignore_index=True)

    def _theory(self) -> None:
        """The theorem and its assumptions."""
        think, direct = self._held_out
        features = self.features[TRAINED]

        def given_tokens() -> pd.DataFrame:
            return bound_table(bound_points(think, direct, features, given="tokens"), seed=self.seed)

        self.add("bound_points", lambda: bound_points(think, direct, features))
        self.add("bound", lambda: bound_table(self.tables["bound_points"], seed=self.seed), of="bound_points")
        self.add("bound_given_tokens", given_tokens, of="bound_points")
        self.add("bound_control", lambda: bound_control(think, direct, features, seed=self.seed))
        self.add("explained", lambda: self._explained(self.backend.model, self.saes, [*think, *direct]))
        decoders = {layer: (unit_directions(sae), sae.b_dec) for layer, sae in self.saes.items()}
        shuffled = self.features.get("shuffled modes")

        def assumptions() -> pd.DataFrame:
            explained = self.tables["explained"]
            return assumption_table(think, direct, features, decoders, explained, control=shuffled, seed=self.seed)

        self.add("assumptions", assumptions, of="explained")

    def _pressure(self) -> None:
        """Optimisation pressure at the last layer."""
        self.add("pressure_tokens", lambda: self.readings.pressures(self.results))
        self.add("pressure", lambda: pressure_table(self.tables["pressure_tokens"], seed=self.seed), of="pressure_tokens")
        self.add("pull_links", lambda: pull_link(self.tables["pressure_tokens"], seed=self.seed), of="pressure_tokens")

    def _causes(self) -> None:
        """Suppression while the model thinks."""
        if self.options.quantiles:
            self.add("causal_outcomes", lambda: self.readings.outcomes(self.traces[TRAINED][0]))
        else:
            self.notes["causal_outcomes"] = "the causal test was left out (quantiles=())"
        outcomes = "causal_outcomes"
        self.add("causal", lambda: causal_table(self.tables[outcomes]), of=outcomes)
        self.add("causal_differences", lambda: causal_differences(self.tables[outcomes], seed=self.seed), of=outcomes)
