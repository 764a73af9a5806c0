"""Arms from TOML files: those that are shipped, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import tl_l2norm as l2
from tests.traces import trace_of
from tl_l2norm.core.errors import InputError
from tl_l2norm.experiments.arms import arms_of
from tl_l2norm.experiments.arms_file import SHIPPED, load_arms
from tl_l2norm.experiments.kept_log import KeptLog
from tl_l2norm.experiments.settings import settings_of

TRACES = [trace_of([[3.0, 4, 5, 9, 2, 7]] * 3, prompt_len=2, think=2)]


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_arms_can_be_made(file: Path) -> None:
    arms = arms_of(load_arms(file.stem))
    assert arms[0].name == "baseline" and len(arms) > 2
    made = {arm.name: arm.made_of(TRACES, ()) if arm.needs_calibration else arm for arm in arms}
    for arm in made.values():
        log = KeptLog(made[arm.match].acts()) if arm.match else None
        assert settings_of([arm.settings(), arm.acts(TRACES, log)])
        assert bool(arm.acts(TRACES, log)) == (arm.name != "baseline" and arm.selection is None)


def test_a_file_says_what_python_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [[arm]]
        name = "plain"
        [[arm]]
        name = "both"
        control = "plain"
        sampling = {temperature = 0.7, top_p = 0.9}
        n = 4
        max_new_tokens = 100
        [[arm.interventions]]
        kind = "ALRR"
        thresholds = {9 = 400.0, 10 = 480.5}
        max_iters = 2
        [[arm.interventions]]
        kind = "ERSS"
        thresholds = {rule = "adaptive", scope = "sequence", warmup = 9}
        layers = [10, -1]
        """
    )
    acts = [l2.ALRR({9: 400.0, 10: 480.5}, max_iters=2), l2.ERSS(l2.AdaptiveIQR(scope="sequence", warmup=9), layers=[10, -1])]
    options = {"sampling": {"temperature": 0.7, "top_p": 0.9}, "n": 4, "max_new_tokens": 100, "control": "plain"}
    mine = l2.Arm("both", acts, **options)  # type: ignore[arg-type]
    assert [arm.settings() for arm in load_arms(file)] == [l2.Arm("plain").settings(), mine.settings()]


def test_thresholds_wait_for_traces(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('arm = [{name = "a", interventions = {kind = "ALRR", thresholds = {rule = "quantile", q = 0.9}}}]')
    (arm,) = load_arms(file)
    (made,) = arm.made_of(TRACES, ["x"]).acts()
    assert arm.needs_calibration and dict(made.thresholds) == dict(l2.quantile_thresholds(TRACES, 0.9))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arm = ", "is no TOML"),
        ("", r"each under \[\[arm\]\]"),
        ("[baseline]", "not 'baseline'"),
        ("[[arm]]\nn = 1", "arm 1: it has no name"),
        ("[[arm]]\nname = 'a'\nselecting = 'x'", "arm 1: no field of an arm 'selecting'. Did you mean 'selection'"),
        ("[[arm]]\nname = 'a'\ntried = 3", "no field of an arm 'tried'"),
        ("[[arm]]\nname = 'a'\nn = 0", r"\(a\): n must be at least 1"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALR'}", "no kind of intervention 'ALR'. Did you mean 'ALRR'"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR', thresholds = 5}", "thresholds are a table"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR', thresholds = {k = 2}}", "by layer, .* got 'k'"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR', thresholds = {rule = 'iq'}}", "no rule of thresholds 'iq'"),
        (
            "[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR', thresholds = {rule = 'iqr', q = 1}}",
            "no option of the rule 'iqr'",
        ),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR', max_iter = 1}", "no parameter of ALRR 'max_iter'"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'ALRR'}", "thresholds"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = ['ALRR']}", r"\(a\): no kind of intervention"),
        ("[[arm]]\nname = 'a'\ninterventions = 'ALRR'", r"\(a\): .*a table with its kind, not 'ALRR'"),
        ("[[arm]]\nname = 'a'\nmatch = 5\ninterventions = {kind = 'Rerun', match = true}", r"(?s)\(a\): .*match"),
        ("[[arm]]\nname = 'a'\nmatch = 'b'\ninterventions = {kind = 'Rerun', p = 0.1}", r"\(a\): .* one without the other"),
        ("[[arm]]\nname = 'a'\ninterventions = {kind = 'Rerun', match = true}", r"\(a\): .* one without the other"),
        *(
            (f"[[arm]]\nname = 'a'\ninterventions = {{kind = 'ALRR', {own}}}", rf"arm 1 \(a\): .*{says}")
            for own, says in (
                ("thresholds = {rule = ['iqr']}", "no rule of thresholds"),
                ("thresholds = {10 = -5.0}", "the threshold of layer 10 must be a norm"),
                ("thresholds = {'--3' = 1.0}", "got '--3'"),
                ("thresholds = {}", "thresholds are empty"),
                ("thresholds = {rule = 'adaptive', warmup = 1}", "warmup must be at least 2"),
                ("thresholds = {rule = 'quantile', q = 2.0}", "q must be between 0 and 1"),
                ("thresholds = {rule = 'iqr', k = -1.0}", "k must be 0 or more"),
                ("thresholds = {rule = 'iqr', include_sinks = 'yes'}", "include_sinks must be"),
                ("thresholds = {rule = 'iqr'}, blowup = -1.0", "blowup must be"),
                ("thresholds = {rule = 'iqr'}, layers = 'lates'", "unknown layers 'lates'"),
            )
        ),
    ],
)
def test_a_bad_file_is_refused_by_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "arms.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        load_arms(file)


def test_a_file_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match="come with the library are alrr, erss, lrs, suppression"):
        load_arms("aler")
