"""The L2 norm of the residual stream as a signal of reasoning, on any TransformerLens model.

Names are imported when they are first used, so that `import tl_l2norm` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_l2norm import widgets
    from tl_l2norm.analysis.accuracy import accuracy_table
    from tl_l2norm.analysis.curves import compare_late, layer_curve
    from tl_l2norm.backends import backend_of
    from tl_l2norm.checks import selfcheck
    from tl_l2norm.collection import collect
    from tl_l2norm.evaluation import run_modes
    from tl_l2norm.features import FeatureActs
    from tl_l2norm.figures import norm_curves, token_heatmap
    from tl_l2norm.generation import Completion, Generations, generate
    from tl_l2norm.interventions.rerun import ALRR
    from tl_l2norm.interventions.steer import ERSS
    from tl_l2norm.interventions.suppress import HighNormSuppression
    from tl_l2norm.models import load_model
    from tl_l2norm.norms import l2_norms
    from tl_l2norm.problem_sources import load_problems, reasoning_gym_problems
    from tl_l2norm.prompts import ChatPrompt, chat_prompt
    from tl_l2norm.reporting import report
    from tl_l2norm.sae_evaluation import evaluate_saes
    from tl_l2norm.sae_training import SaeRecipe, train_saes
    from tl_l2norm.saes import load_saes
    from tl_l2norm.selection import score_table, select
    from tl_l2norm.storage import load_traces, save_traces
    from tl_l2norm.tasks import Problem, make_mixture, make_problems
    from tl_l2norm.thresholds import AdaptiveIQR, Thresholds, iqr_thresholds, quantile_thresholds
    from tl_l2norm.trace import Trace, to_frame
    from tl_l2norm.verifiers import is_correct

__version__ = "0.1.0"

_HOME = {
    "ALRR": "interventions.rerun",
    "AdaptiveIQR": "thresholds",
    "ChatPrompt": "prompts",
    "Completion": "generation",
    "ERSS": "interventions.steer",
    "FeatureActs": "features",
    "Generations": "generation",
    "HighNormSuppression": "interventions.suppress",
    "Problem": "tasks",
    "SaeRecipe": "sae_training",
    "Thresholds": "thresholds",
    "Trace": "trace",
    "accuracy_table": "analysis.accuracy",
    "backend_of": "backends",
    "chat_prompt": "prompts",
    "collect": "collection",
    "compare_late": "analysis.curves",
    "evaluate_saes": "sae_evaluation",
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
    "norm_curves": "figures",
    "quantile_thresholds": "thresholds",
    "reasoning_gym_problems": "problem_sources",
    "report": "reporting",
    "run_modes": "evaluation",
    "save_traces": "storage",
    "score_table": "selection",
    "select": "selection",
    "selfcheck": "checks",
    "to_frame": "trace",
    "token_heatmap": "figures",
    "train_saes": "sae_training",
}

__all__ = [
    "ALRR",
    "ERSS",
    "AdaptiveIQR",
    "ChatPrompt",
    "Completion",
    "FeatureActs",
    "Generations",
    "HighNormSuppression",
    "Problem",
    "SaeRecipe",
    "Thresholds",
    "Trace",
    "accuracy_table",
    "backend_of",
    "chat_prompt",
    "collect",
    "compare_late",
    "evaluate_saes",
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
    "norm_curves",
    "quantile_thresholds",
    "reasoning_gym_problems",
    "report",
    "run_modes",
    "save_traces",
    "score_table",
    "select",
    "selfcheck",
    "to_frame",
    "token_heatmap",
    "train_saes",
    "widgets",
]


def __getattr__(name: str) -> Any:
    if name == "widgets":
        return import_module("tl_l2norm.widgets")
    if name not in _HOME:
        raise AttributeError(f"module 'tl_l2norm' has no attribute {name!r}")
    value = getattr(import_module(f"tl_l2norm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
