"""What `tl-l2norm evaluate` asks for and prints, and how commands are told what to ask."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_l2norm.core.errors import InputError

if TYPE_CHECKING:
    from tl_l2norm.experiments.evaluation_results import Results
    from tl_l2norm.tasks.problems import Problem


OUR_LENGTH = 160
"""Tokens of a thinking response of the models that come with the library."""


def add_problems(command: argparse.ArgumentParser, n: str) -> None:
    """What is asked and how, the same for every command that asks."""
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="problems with columns question and answer (or problem, prompt, messages, solution, choices, ...): .jsonl, .json, "
        ".csv, .tsv or .parquet; a mixture of our own tasks that suits the model by default",
    )
    command.add_argument("--n", type=int, default=None, help=n)
    command.add_argument(
        "--max-new-tokens",
        type=int,
        default=None,
        help=f"length of a thinking response; {OUR_LENGTH} for tiny-reasoner and smollm2, else what the context has left, up "
        "to 4096 for models whose template thinks and 256 for others",
    )
    command.add_argument("--max-direct-tokens", type=int, default=32, help="length of a direct response")
    command.add_argument("--seed", type=int, default=0, help="of problems, sampling and resampling")
    command.add_argument("--batch-size", type=int, default=None, help="responses decoded at once; 16, 100 for tiny-reasoner")
    command.add_argument(
        "--saes",
        metavar="SOURCE",
        default=None,
        help="SAEs whose activations stand beside the norms: a folder, a short name, or 'none'; the model's own by default, "
        "where they come with the library",
    )
    command.add_argument(
        "--sink-ratio",
        type=float,
        default=None,
        help="a norm over this many times its layer's median over the prompt is a sink's and left out; 5, and "
        "20 for tiny-reasoner, where tokens at which direct answers are worked out are over 5",
    )


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command, beside those of the model."""
    command.add_argument(
        "--problems",
        dest="prompts",
        metavar="FILE",
        help="problems with columns question and answer: .jsonl, .json, .csv, .tsv or .parquet; a mixture of our own tasks "
        "that suits the model by default",
    )
    command.add_argument(
        "--n", type=int, default=None, help="how many problems; 100 of our own (200 for tiny-reasoner), all of a file"
    )
    command.add_argument(
        "--arms",
        required=True,
        metavar="FILE.toml",
        help="arms to hold against the first; shipped: alrr, erss, lrs, suppression",
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder to write, and to go on from")
    command.add_argument("--calibration", metavar="FILE", default=None, help="problems to take thresholds and limits from")
    command.add_argument(
        "--calibration-share",
        type=float,
        default=0.25,
        help="of the problems, for that, where there is no such file: chosen by their hash, and not tested on",
    )
    command.add_argument("--samples", type=int, default=1, help="responses to each problem, unless an arm says otherwise")
    command.add_argument(
        "--temperature",
        type=float,
        default=None,
        help="0 is greedy; by default that, and 1 (2.2 for tiny-reasoner) where an arm takes several responses",
    )
    command.add_argument("--mode", choices=("think", "direct"), default="think", help="whether the model thinks first")
    command.add_argument(
        "--max-new-tokens", type=int, default=None, help="length of a response; by default what calibration's lengths ask for"
    )
    command.add_argument("--seed", type=int, default=0, help="of problems, sampling and resampling")
    command.add_argument("--batch-size", type=int, default=None, help="responses decoded at once; 16, 100 for tiny-reasoner")
    command.add_argument("--sink-ratio", type=float, default=None, help="bound of attention sinks; 5, 20 for tiny-reasoner")
    command.add_argument(
        "--segment-tokens", type=int, default=None, help="of a thought's segments, for net_change and its like; 500"
    )
    command.add_argument("--engine", choices=("vllm",), default=None, help="write the responses there: see docs/engines.md")
    command.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of load_engine, such as max_model_len=4096; may be given several times. --batch-size is its max_num_seqs",
    )


def run(options: argparse.Namespace, problems: Sequence[Problem], load: Callable[[], Any]) -> Results:
    """Run the evaluation, print its tables and write them as CSV; what can be refused is, before a model is loaded."""
    from tl_l2norm.experiments.arms import arms_of
    from tl_l2norm.experiments.arms_file import load_arms
    from tl_l2norm.experiments.calibration import split_problems
    from tl_l2norm.experiments.evaluation import evaluate
    from tl_l2norm.tasks.sources import load_problems

    arms = arms_of(load_arms(options.arms))
    if options.calibration:
        calibration, test = load_problems(options.calibration), tuple(problems)
    else:
        calibration, test = split_problems(problems, share=options.calibration_share, seed=options.seed)
    several = any((arm.n or options.samples) > 1 for arm in arms)
    with _loaded(options, load) as model:
        results = evaluate(
            model,
            test,
            arms,
            n=options.samples,
            temperature=_temperature(options, model, several),
            mode=options.mode,
            max_new_tokens=options.max_new_tokens,
            calibration=calibration,
            sink_ratio=options.sink_ratio,
            batch_size=_batch_size(options, model),
            segment_tokens=options.segment_tokens,
            seed=options.seed,
            out=options.out,
        )
    print(results)
    tables = write_tables(results, Path(options.out) / "tables")
    print(f"\ntables: {tables}")
    return results


@contextmanager
def _loaded(options: argparse.Namespace, load: Callable[[], Any]) -> Iterator[Any]:
    """The model, or the engine in its place, which is closed behind it."""
    given = dict(map(_pair, options.engine_option))
    if options.engine is None:
        if given:
            raise InputError("--engine-option is of an engine: give --engine vllm")
        yield load()
        return
    if options.device is not None or options.backend != "bridge":
        raise InputError("--device and --backend are of a model that runs here: an engine has its own")
    import torch

    from tl_l2norm.engines.load import load_engine

    if options.batch_size is not None:
        given["max_num_seqs"] = options.batch_size
    with load_engine(options.model, dtype=getattr(torch, options.dtype), **given) as engine:
        yield engine


def _pair(text: str) -> tuple[str, Any]:
    """Name and value of an option: a number or a truth as JSON writes it, else the text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--engine-option is NAME=VALUE, such as max_model_len=4096, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _temperature(options: argparse.Namespace, model: Any, several: bool) -> float:
    from tl_l2norm.core.presets import temperature_of

    if options.temperature is None and not several:
        return 0.0
    return temperature_of(model, options.temperature)


def _batch_size(options: argparse.Namespace, model: Any) -> int | None:
    """None for an engine, which has its own, and where the model's is taken."""
    from tl_l2norm.core.presets import kept_preset

    return options.batch_size if options.engine or kept_preset(model) else options.batch_size or 16


def write_tables(results: Results, folder: Path) -> Path:
    """Write all tables as CSV; those by family and level too, where there are several."""
    from tl_l2norm.core.tables import csv_text

    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "arms": results.to_frame(),
        "costs": results.costs(),
        "decisions": results.decisions,
        "outcomes": results.outcomes,
    }
    several = [name for name in ("family", "level") if results.outcomes[name].nunique() > 1]
    tables |= {f"arms_by_{name}": results.to_frame(by=name) for name in several}
    for name, table in tables.items():
        (folder / f"{name}.csv").write_bytes(csv_text(table).encode())
    return folder
