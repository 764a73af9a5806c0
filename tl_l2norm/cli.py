"""The command line: `tl-l2norm report` (or `demo`), `analyse`, `evaluate`, `live` and `doctor`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_l2norm import __version__
from tl_l2norm.core.errors import InputError, Unmeasurable
from tl_l2norm.text.plain import bear_any_text

if TYPE_CHECKING:
    from tl_l2norm.core.presets import Preset
    from tl_l2norm.tasks.problems import Problem

_FAULTS = (InputError, Unmeasurable, FloatingPointError)  # anything else is a bug and keeps its traceback
_OUTSIDE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)  # but files, disks and networks are the user's
_FOLDERS = ("analyse", "evaluate")  # whose --out is a folder to go on from


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (2 for bad input, 1 for a failed check)."""
    bear_any_text(sys.stdout)
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(options.run(options))
    except _FAULTS as error:
        print(f"tl-l2norm {options.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest tried at exit
        return 141
    except OSError as error:
        if not (isinstance(error, _OUTSIDE) or error.filename or error.errno == errno.ENOSPC):
            raise
        print(f"tl-l2norm {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = options.out if options.command in _FOLDERS else getattr(options, "save", None)
        goes_on = f": finished responses are kept in {kept}, the same command goes on from them" if kept else ""
        print(f"\ninterrupted{goes_on}", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without a line of source, which tells a user of the command line nothing."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tl-l2norm",
        description="The L2 norm of the residual stream as a signal of reasoning, on any TransformerLens model.",
    )
    parser.add_argument("--version", action="version", version=f"tl-l2norm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_report(commands)
    _add_analyse(commands)
    _add_evaluate(commands)
    _add_live(commands)
    _add_doctor(commands)
    return parser


def _add_report(commands: Any) -> None:
    from tl_l2norm.experiments.command import add_problems

    command = commands.add_parser(
        "report",
        aliases=["demo"],
        help="ask a model problems, thinking and directly, and write what its norms did",
        description="Ask a model problems in both modes, record its norms, and write one self-contained HTML report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(command)
    add_problems(command, "how many problems; 24 of our own (200 for tiny-reasoner), all of a file")
    command.add_argument("--out", default="report.html", metavar="FILE.html", help="where to write the report")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--layer", type=int, default=None, help="layer that colours the tokens; a late one by default")
    command.add_argument("--examples", type=int, default=3, help="problems shown token by token")
    command.add_argument("--save", metavar="DIR", default=None, help="keep results here as they come, and go on from them")
    command.set_defaults(run=_report)


def _add_analyse(commands: Any) -> None:
    from tl_l2norm.experiments.command import add_problems

    command = commands.add_parser(
        "analyse",
        help="measure every claim of the paper on a model, each with its control",
        description="Ask a model problems in both modes and measure what the paper claims: reasoning features, curves, "
        "correlations, theory, causes, each beside its control. Writes a folder: tables as CSV, a page with figures, and all "
        "that the same command goes on from.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(command)
    add_problems(command, "how many problems; 200 of our own, all of a file")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to write, and to go on from")
    command.add_argument(
        "--quantiles",
        type=float,
        nargs="+",
        default=None,
        metavar="Q",
        help="thresholds of the causal test: 0.8 suppresses the fifth of the tokens that is highest; 0.95, 0.8 and 0.5",
    )
    command.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=("untrained-sae", "random-weight-model", "shuffled-modes", "suppression", "samples", "swaps"),
        help="leave out a control, the causal test, samples of the primary endpoint or the swap of tokens; may be repeated",
    )
    command.add_argument("--samples", type=int, default=8, help="thinking responses to each problem, for the primary endpoint")
    command.add_argument(
        "--temperature",
        type=float,
        default=None,
        help="of those: one at which many problems have right and wrong ones, and few state no answer; 1, and 2.2 for "
        "tiny-reasoner",
    )
    command.set_defaults(run=_analyse)


def _add_evaluate(commands: Any) -> None:
    from tl_l2norm.experiments.command import add_options

    command = commands.add_parser(
        "evaluate",
        help="hold ALRR, ERSS, LRS, suppression or arms of your own against a baseline",
        description="Ask every arm of a file the same problems with the same seeds; print accuracy, paired differences with "
        "verdicts, and costs. Thresholds and limits come from other problems. Writes a folder, and goes on from it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(command)
    add_options(command)
    command.set_defaults(run=_evaluate)


def _add_live(commands: Any) -> None:
    from tl_l2norm.show.live_command import add_options

    command = commands.add_parser(
        "live",
        help="watch a response while it is written, its tokens lit by norm",
        description="Write the response to a prompt in the terminal: tokens lit by the norm of the late layers as they come, "
        "and beside each line how it ran. With an intervention the plain response comes first, and gives it its thresholds. "
        "Ctrl-C ends a response and keeps what was written. NO_COLOR and pipes are plain.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(command)
    _add_model(command)
    command.set_defaults(run=_live)


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="check this machine, a model's files, and that norms of the model are right here",
        description="Say what is installed, what the machine has, whether the model's files are whole and fit, and what to do "
        "about each fault. Then check that norms of the model, as it is loaded here, are right: against themselves, and "
        "against its files read again by plain Hugging Face (some seconds for a GGUF file). Exit code 1 for a fault or a "
        "failed check.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(command)
    command.set_defaults(run=_doctor)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default="tiny-reasoner",
        help="hub id, Hugging Face folder, .gguf file, or a short name: tiny-reasoner (in the package) or smollm2",
    )
    command.add_argument(
        "--backend", choices=("bridge", "hooked"), default="bridge", help="TransformerBridge or HookedTransformer"
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    command.add_argument("--device", default=None, help="such as cuda or cpu; a GPU where there is one by default")


def _report(options: argparse.Namespace) -> int:
    _check(options)
    problems, saes = _problems(options), _saes(options)  # what can be refused should be before a model is loaded
    model = _load(options)
    if options.layer is not None:
        from tl_l2norm.core.layers import resolve_layers

        resolve_layers(options.layer, model.cfg.n_layers)
    from tl_l2norm.experiments.modes import run_modes
    from tl_l2norm.show.report import report, summary

    results = run_modes(
        model,
        problems,
        max_new_tokens=_max_new_tokens(options),
        max_direct_tokens=options.max_direct_tokens,
        temperature=options.temperature,
        seed=options.seed,
        saes=saes,
        sink_ratio=options.sink_ratio,
        batch_size=_batch_size(options),
        save_to=options.save,
    )
    path = report(results, path=options.out, layer=options.layer, examples=options.examples, seed=options.seed)
    print(summary(results, seed=options.seed))
    print(f"\nreport: {path}")
    return 0


def _analyse(options: argparse.Namespace) -> int:
    _check(options)
    problems, saes = _problems(options, few=200), _saes(options)
    model = _load(options)
    from tl_l2norm.experiments.suppression import QUANTILES
    from tl_l2norm.paper.report import analysis_report
    from tl_l2norm.paper.study import CONTROLS, analyse
    from tl_l2norm.paper.summary import summary

    analysis = analyse(
        model,
        saes,
        problems,
        controls=[name for name in CONTROLS if name.lower().replace(" ", "-") not in options.skip],
        quantiles=() if "suppression" in options.skip else options.quantiles or QUANTILES,
        samples=0 if "samples" in options.skip else options.samples,
        temperature=options.temperature,
        swapped_tokens=0 if "swaps" in options.skip else 16,
        max_new_tokens=_max_new_tokens(options),
        max_direct_tokens=options.max_direct_tokens,
        sink_ratio=options.sink_ratio,
        batch_size=_batch_size(options),
        seed=options.seed,
        save_to=options.out,
    )
    path = analysis_report(analysis, path=Path(options.out) / "analysis.html")
    print(summary(analysis.claims(), analysis.tables))
    print(f"\npage: {path}\ntables: {Path(options.out) / 'tables'}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from tl_l2norm.experiments.command import run

    _check(options)
    results = run(options, _problems(options, few=100), lambda: _load(options))
    from tl_l2norm.show.evaluation_page import evaluation_page

    print(f"page: {evaluation_page(results, path=Path(options.out) / 'evaluation.html')}")
    return 0


def _live(options: argparse.Namespace) -> int:
    from tl_l2norm.show.live_command import run

    return run(options, lambda: _load(options))


def _check(options: argparse.Namespace) -> None:
    """Refuse options that no model could be asked with, and places where what comes of it couldn't be kept."""
    from tl_l2norm.core.storage import require_place
    from tl_l2norm.show.page import page_path

    for name, least in (("n", 1), ("max_new_tokens", 1), ("max_direct_tokens", 1), ("batch_size", 1), ("examples", 0)):
        if (value := getattr(options, name, None)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not 0 <= (getattr(options, "temperature", None) or 0.0) < float("inf"):
        raise InputError(f"--temperature must be 0 (greedy) or more, got {options.temperature}")
    if options.sink_ratio is not None and not options.sink_ratio > 1:
        raise InputError(f"--sink-ratio must be over 1 (times the median norm), got {options.sink_ratio}")
    if options.run is _report:
        page_path(options.out, "--out")
    for name, folder in (("save", getattr(options, "save", None)), ("out", options.out)):
        if folder is not None and (name == "save" or options.command in _FOLDERS):
            require_place(folder, f"--{name}", writes=False)  # a finished run may lie where one only reads


def _problems(options: argparse.Namespace, few: int = 24) -> tuple[Problem, ...]:
    from tl_l2norm.tasks.problems import make_mixture
    from tl_l2norm.tasks.sources import load_problems

    if options.prompts:
        return load_problems(options.prompts)[: options.n]
    suits = _preset(options)
    if suits is not None and suits.families:
        return make_mixture(options.n or suits.n_problems or few, families=suits.families, seed=options.seed, split="test")
    return make_mixture(options.n or few, seed=options.seed)


def _max_new_tokens(options: argparse.Namespace) -> int | None:
    from tl_l2norm.experiments.command import OUR_LENGTH
    from tl_l2norm.models.sources import BUNDLED, OURS

    known = options.model in OURS or options.model in BUNDLED
    return OUR_LENGTH if options.max_new_tokens is None and known else options.max_new_tokens


def _batch_size(options: argparse.Namespace) -> int | None:
    """None where the model's own is taken."""
    return options.batch_size if options.batch_size is not None or _preset(options) else 16


def _preset(options: argparse.Namespace) -> Preset | None:
    from tl_l2norm.models.sources import preset_for

    return preset_for(options.model)


def _saes(options: argparse.Namespace) -> dict[int, Any] | None:
    from tl_l2norm.models.sources import OURS
    from tl_l2norm.saes.load import load_saes

    source = options.model if options.saes is None and options.model in OURS else options.saes
    return None if source in (None, "none") else load_saes(source)


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from tl_l2norm.experiments.doctor import examine, remedies
    from tl_l2norm.experiments.selfcheck import selfcheck

    dtype = getattr(torch, options.dtype)
    found = examine(options.model, backend=options.backend, dtype=dtype, device=options.device)
    print(found, flush=True)
    if found.faults:  # loading would say less
        return 1
    outcome = selfcheck(_load(options))
    print(f"\n{outcome}")
    if what_to_do := remedies(outcome):
        print(f"\n{what_to_do}")
    return 0 if outcome.passed else 1


def _load(options: argparse.Namespace) -> Any:
    print(f"loading {options.model} ...", file=sys.stderr, flush=True)
    import torch

    from tl_l2norm.models.load import load_model

    return load_model(options.model, backend=options.backend, device=options.device, dtype=getattr(torch, options.dtype))
