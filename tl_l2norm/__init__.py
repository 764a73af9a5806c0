"""The L2 norm of the residual stream as a signal of reasoning, on any TransformerLens model.

Names are imported when they are first used, so that `import tl_l2norm` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_l2norm import widgets
    from tl_l2norm.analysis.accuracy import accuracy_table
    from tl_l2norm.analysis.attribution import attribute
    from tl_l2norm.analysis.causal import causal_differences, causal_table
    from tl_l2norm.analysis.correlation import correlation_table
    from tl_l2norm.analysis.curves import compare_late, layer_curve, mode_differences
    from tl_l2norm.analysis.dynamics import dynamics
    from tl_l2norm.analysis.reasoning import ReasoningFeatures, find_reasoning_features, top_tokens
    from tl_l2norm.analysis.theory import assumption_table, bound_points, bound_table
    from tl_l2norm.models.backend import backend_of
    from tl_l2norm.experiments.selfcheck import selfcheck
    from tl_l2norm.recording.collect import collect
    from tl_l2norm.experiments.modes import run_modes
    from tl_l2norm.core.features import FeatureActs
    from tl_l2norm.show.figures import norm_curves, token_heatmap
    from tl_l2norm.recording.generate import Completion, Generations, generate
    from tl_l2norm.interventions.alrr import ALRR
    from tl_l2norm.interventions.erss import ERSS
    from tl_l2norm.interventions.suppress import HighNormSuppression
    from tl_l2norm.models import load_model, random_twin
    from tl_l2norm.core.norms import l2_norms
    from tl_l2norm.paper.study import Analysis, analyse
    from tl_l2norm.paper.figures import draw_analysis
    from tl_l2norm.paper.report import analysis_report
    from tl_l2norm.recording.pressure import optimisation_pressure
    from tl_l2norm.tasks.sources import load_problems, reasoning_gym_problems
    from tl_l2norm.text.prompts import ChatPrompt, chat_prompt
    from tl_l2norm.show.report import report
    from tl_l2norm.saes.evaluate import evaluate_saes
    from tl_l2norm.saes.train import SaeRecipe, train_saes
    from tl_l2norm.saes.load import load_saes, untrained_saes
    from tl_l2norm.experiments.selection import score_table, select
    from tl_l2norm.core.storage import load_traces, save_traces
    from tl_l2norm.experiments.suppression import suppress_and_ask
    from tl_l2norm.tasks.problems import Problem, make_mixture, make_problems
    from tl_l2norm.core.thresholds import AdaptiveIQR, Thresholds, iqr_thresholds, quantile_thresholds
    from tl_l2norm.core.trace import Trace, to_frame
    from tl_l2norm.tasks.verifiers import is_correct

__version__ = "0.1.0"

_HOME = {
    "ALRR": "interventions.rerun",
    "AdaptiveIQR": "thresholds",
    "Analysis": "paper_analysis",
    "ChatPrompt": "prompts",
    "Completion": "generation",
    "ERSS": "interventions.steer",
    "FeatureActs": "features",
    "Generations": "generation",
    "HighNormSuppression": "interventions.suppress",
    "Problem": "tasks",
    "ReasoningFeatures": "analysis.reasoning",
    "SaeRecipe": "sae_training",
    "Thresholds": "thresholds",
    "Trace": "trace",
    "accuracy_table": "analysis.accuracy",
    "analyse": "paper_analysis",
    "analysis_report": "paper_report",
    "assumption_table": "analysis.theory",
    "attribute": "analysis.attribution",
    "backend_of": "backends",
    "bound_points": "analysis.theory",
    "bound_table": "analysis.theory",
    "causal_differences": "analysis.causal",
    "causal_table": "analysis.causal",
    "chat_prompt": "prompts",
    "collect": "collection",
    "compare_late": "analysis.curves",
    "correlation_table": "analysis.correlation",
    "draw_analysis": "paper_figures",
    "dynamics": "analysis.dynamics",
    "evaluate_saes": "sae_evaluation",
    "find_reasoning_features": "analysis.reasoning",
    "generate": "generation",
    "iqr_thresholds": "thresholds",
    "is_correct": "verifiers",
    "l2_norms": "norms",
    "layer_curve": "analysis.curves",
    "load_model": "models",
    "load_problems": "problem_sources",
    "load_saes": "saes",
    "load_traces": "storage",
    "make_mixture": "tasks",
    "make_problems": "tasks",
    "mode_differences": "analysis.curves",
    "norm_curves": "figures",
    "optimisation_pressure": "pressure",
    "quantile_thresholds": "thresholds",
    "random_twin": "models",
    "reasoning_gym_problems": "problem_sources",
    "report": "reporting",
    "run_modes": "evaluation",
    "save_traces": "storage",
    "score_table": "selection",
    "select": "selection",
    "selfcheck": "checks",
    "suppress_and_ask": "suppression",
    "to_frame": "trace",
    "token_heatmap": "figures",
    "top_tokens": "analysis.reasoning",
    "train_saes": "sae_training",
    "untrained_saes": "saes",
}

__all__ = [
    "ALRR",
    "ERSS",
    "AdaptiveIQR",
    "Analysis",
    "ChatPrompt",
    "Completion",
    "FeatureActs",
    "Generations",
    "HighNormSuppression",
    "Problem",
    "ReasoningFeatures",
    "SaeRecipe",
    "Thresholds",
    "Trace",
    "accuracy_table",
    "analyse",
    "analysis_report",
    "assumption_table",
    "attribute",
    "backend_of",
    "bound_points",
    "bound_table",
    "causal_differences",
    "causal_table",
    "chat_prompt",
    "collect",
    "compare_late",
    "correlation_table",
    "draw_analysis",
    "dynamics",
    "evaluate_saes",
    "find_reasoning_features",
    "generate",
    "iqr_thresholds",
    "is_correct",
    "l2_norms",
    "layer_curve",
    "load_model",
    "load_problems",
    "load_saes",
    "load_traces",
    "make_mixture",
    "make_problems",
    "mode_differences",
    "norm_curves",
    "optimisation_pressure",
    "quantile_thresholds",
    "random_twin",
    "reasoning_gym_problems",
    "report",
    "run_modes",
    "save_traces",
    "score_table",
    "select",
    "selfcheck",
    "suppress_and_ask",
    "to_frame",
    "token_heatmap",
    "top_tokens",
    "train_saes",
    "untrained_saes",
    "widgets",
]


def __getattr__(name: str) -> Any:
    if name == "widgets":
        return import_module("tl_l2norm.show.widgets")
    if name not in _HOME:
        raise AttributeError(f"module 'tl_l2norm' has no attribute {name!r}")
    value = getattr(import_module(f"tl_l2norm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
