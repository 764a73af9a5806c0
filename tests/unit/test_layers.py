"""Imports run one way: from a higher layer to a lower one."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "tl_l2norm"
LEVELS = {
    0: {
        "errors",
        "protocols",
        "hook_names",
        "arguments",
        "inputs",
        "presets",
        "norms",
        "draws",
        "tables",
        "features",
        "families",
        "fingerprint",
        "kv_cache",
        "gguf_header",
    },
    1: {
        "trace",
        "thresholds",
        "storage",
        "attach",
        "sampling",
        "answer_text",
        "reference_answers",
        "choices",
        "tasks",
        "thoughts",
        "chat_template",
        "boundaries",
        "prompts",
        "responses",
        "math_answers",
        "answer_kinds",
        "verifiers",
        "problem_files",
        "problem_rows",
        "problem_sources",
    },
    2: {
        "turn_ends",
        "block_calls",
        "final_norm",
        "backends",
        "decode_check",
        "sequences",
        "recording",
        "models",
        "saes",
        "sae_checks",
        "sae_config",
        "sae_reader",
        "encoding",
        "metrics",
        "sae_training",
        "interventions",
        "collection",
    },
    3: {"generation", "analysis", "pressure", "selection", "saved_runs"},
    4: {"file_check", "evaluation", "sae_evaluation", "checks", "suppression", "paper_readings", "paper_analysis"},
    5: {"drawing", "figures", "widgets", "report_parts", "reporting", "paper_panels", "paper_figures", "paper_report"},
    6: {"cli", "__main__"},
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports, those needed only for types left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tl_l2norm."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_layer_and_imports_only_from_its_own_or_below() -> None:
    upward = []
    for path in PACKAGE.rglob("*.py"):
        name = module_of(path)
        if name == "__init__":
            continue
        assert name in LEVEL_OF, f"{name} has no layer: add it to the table"
        upward += [f"{name} -> {other}" for other in imports(ast.parse(path.read_text())) if LEVEL_OF[other] > LEVEL_OF[name]]
    assert not upward


def test_the_parser_of_this_test_sees_an_arrow() -> None:
    assert imports(ast.parse("def f():\n    from tl_l2norm.cli import main")) == {"cli"}
