"""What recording costs: ratios of medians, both sides timed in turn in one run.

python -m benchmarks.run [collect] [decode] [step] [batch] [intervene] [features] [metrics] [start] [--repeats 5]
    [--source smollm2] [--write]  puts the tables into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from datetime import date
from typing import Any

import pandas as pd
import torch

import tl_l2norm as l2
from benchmarks.decoding import batch_rows, decode_rows, step_rows
from benchmarks.pages import benchmark_region
from benchmarks.regions import BENCHMARKS, write_regions
from benchmarks.timing import Row, peak_bytes, seconds
from tl_l2norm.core.tables import render_table
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.reading import read
from tl_l2norm.models.sources import find_source
from tl_l2norm.recording.metrics import METRICS


def as_transformer_lens_loads(model: Any) -> Any:
    """Undo the layout that `load_model` gives to matrices, which makes TransformerLens' own code faster too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def collect_rows(models: dict[str, Any], repeats: int) -> list[Row]:
    torch.manual_seed(0)
    tokens = torch.randint(5, 40_000, (4, 256))
    sequences = tokens.tolist()
    rows = []
    for name, model in models.items():
        names = [backend_of(model).resid_post(layer).name for layer in range(backend_of(model).n_layers)]

        def bare(model: Any = model) -> Any:
            with torch.no_grad():
                return model(tokens)

        def cached(model: Any = model, names: list[str] = names) -> Any:
            with torch.no_grad():
                _, cache = model.run_with_cache(tokens, names_filter=names)
                return [cache[n].norm(dim=-1) for n in names], cache

        def ours(model: Any = model) -> Any:
            return l2.collect(model, sequences, batch_size=4, progress=False)

        def silent(model: Any = model) -> None:
            backend = backend_of(model)
            with torch.no_grad():
                backend.forward(tokens, torch.ones_like(tokens))

        base, with_cache, recorded = seconds(bare, cached, ours, repeats=repeats)
        bound = {"bridge": "<= 0.85", "hooked": "<= 0.88"}.get(name, "")
        rows.append(
            {
                "what": f"collect, all layers, 4 x 256 ({name})",
                "seconds": recorded,
                "against": "its own forward with logits",
                "theirs": base,
                "ratio": recorded / base,
                "wanted": bound,
            }
        )
        rows.append(
            {
                "what": f"run_with_cache and norms ({name})",
                "seconds": with_cache,
                "against": "its own forward with logits",
                "theirs": base,
                "ratio": with_cache / base,
                "wanted": "",
            }
        )
        extra, theirs = peak_bytes(ours) - peak_bytes(silent), peak_bytes(cached) - peak_bytes(bare)
        rows.append(
            {
                "what": f"extra peak memory, MB ({name})",
                "seconds": extra / 1e6,
                "against": "run_with_cache on resid_post",
                "theirs": theirs / 1e6,
                "ratio": extra / theirs,
                "wanted": "<= 0.02",
            }
        )
    return rows


def intervene_rows(models: dict[str, Any], repeats: int) -> list[Row]:
    """Interventions on the late layers, batch 8, against the same decoding without."""
    model = models["bridge"]
    prompts = [list(l2.chat_prompt(model.tokenizer, p.question).tokens) for p in l2.make_mixture(8, seed=1)]
    kept: dict[str, Any] = {"max_new_tokens": 32, "ignore_eos": True, "batch_size": 8, "record": False, "progress": False}
    traces = l2.generate(model, prompts, **{**kept, "record": True}).traces
    tau = l2.quantile_thresholds(traces, 0.9)
    never = dict.fromkeys(tau, float("inf"))
    late: dict[str, Any] = {"layers": "late"}
    acting = {
        "suppression": (l2.Suppression(tau, **late), "<= 1.05"),
        "random suppression": (l2.Suppression(which="random", **late), ""),
        "ERSS": (l2.ERSS(tau, patience=4, **late), "<= 1.05"),
        "adaptive suppression": (l2.Suppression(l2.AdaptiveIQR(warmup=50), **late), ""),
        "ALRR that never fires": (l2.ALRR(never, **late), "<= 1.03"),
        "ALRR": (l2.ALRR(tau, growth_eps=-1.0, blowup=5.0, **late), "<= 1 + 1.15 x re-runs"),
        "ALRR, every token": (l2.ALRR(dict.fromkeys(tau, 1.0), growth_eps=-1.0, blowup=1e9, **late), "<= 1 + 1.15 x re-runs"),
    }
    calls = [
        lambda x=x: l2.generate(model, prompts, interventions=x, **kept) for x in ((), *((x,) for x, _ in acting.values()))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one of them never fires
        plain, *found = seconds(*calls, repeats=repeats)
        logs = [call().log for call in calls[1:]]
    rows = []
    for (name, (x, wanted)), ours, log in zip(acting.items(), found, logs, strict=True):
        events = log.events()
        if isinstance(x, l2.ALRR):  # positions of a step differ by row: count steps from each prompt's end
            step = events["position"] - events["sequence"].map(dict(enumerate(map(len, prompts))))
            reruns = events.assign(step=step).query("reruns > 0").groupby(["step", "layer"]).ngroups
            runs = (kept["max_new_tokens"] - 1) * backend_of(model).n_layers
            wanted = wanted.replace("1 + 1.15 x re-runs", f"{1 + 1.15 * reruns / runs:.2f}")
        what = f"{name} on 8 late layers, batch 8, {int(events['fired'].sum())} events: s"
        rows.append(
            {
                "what": what,
                "seconds": ours,
                "against": "generate alone",
                "theirs": plain,
                "ratio": ours / plain,
                "wanted": wanted,
            }
        )
    return rows


def feature_rows(repeats: int) -> list[Row]:
    """What features cost over norms alone, against encoding the same states and nothing else; the tiny reasoner, 12 SAEs."""
    model, saes = l2.load_model("tiny-reasoner", device="cpu"), l2.load_saes("tiny-reasoner")
    problems = l2.make_mixture(64, families="compact", levels=[4, 8], split="test")
    prompts = [list(l2.chat_prompt(model.tokenizer, p.question).tokens) for p in problems]
    kept: dict[str, Any] = {"max_new_tokens": 64, "ignore_eos": True, "batch_size": 64, "progress": False}
    sequences = [list(trace.tokens) for trace in l2.generate(model, prompts, **kept).traces]
    backend = backend_of(model)
    states = {}
    for layer in saes:
        with torch.no_grad(), backend.capture_stream(layer) as streams:
            for tokens in sequences:
                model(torch.tensor([tokens]))
        states[layer] = torch.cat([stream[0] for stream in streams])

    def encode() -> None:
        with torch.no_grad():
            for layer, sae in saes.items():
                for part in states[layer].split(4096):
                    sae.encode(part)

    once: dict[str, Any] = {"batch_size": 64, "progress": False}
    calls = [
        encode,
        lambda: l2.collect(model, sequences, **once),
        lambda: l2.collect(model, sequences, saes=saes, **once),
        lambda: l2.generate(model, prompts, **kept),
        lambda: l2.generate(model, prompts, saes=saes, **kept),
    ]
    alone, collected, with_features, generated, with_features_too = seconds(*calls, repeats=repeats)
    return [
        {
            "what": f"{what}: s more",
            "seconds": more,
            "against": "encode alone",
            "theirs": alone,
            "ratio": more / alone,
            "wanted": "near 1",
        }
        for what, more in (
            (f"features of collect, {sum(map(len, sequences))} tokens", with_features - collected),
            ("features of generate, the same", with_features_too - generated),
        )
    ]


def metric_rows(models: dict[str, Any], repeats: int) -> list[Row]:
    """All metrics at all layers against the matrix products that they need, and memory against the number of sequences."""
    torch.manual_seed(0)
    tokens = torch.randint(5, 40_000, (4, 128))
    mask = torch.ones_like(tokens)
    rows = []
    for name, model in models.items():
        backend = backend_of(model)
        states = []
        for layer in range(backend.n_layers):
            with torch.no_grad(), backend.capture_stream(layer) as streams:
                backend.forward(tokens, mask)
            states.append(streams[0].reshape(-1, backend.d_model))
        unembedding = model.W_U.detach().T.contiguous()  # a row for each token: the layout that its product reads fastest

        def products(backend: Any = backend, states: list[Any] = states, unembedding: Any = unembedding) -> None:
            with torch.no_grad():
                backend.forward(tokens, mask, logits="all")
                for state in states:
                    torch.nn.functional.linear(backend.model.ln_final(state[None]), unembedding)

        def ours(*metrics: str, n: int = 4, layers: Any = None, model: Any = model) -> Any:
            sequences = tokens.repeat(n // 4, 1)
            return l2.collect(model, sequences, metrics=metrics, layers=layers, batch_size=4, progress=False)

        def extra(n: int, ours: Any = ours) -> float:
            some = {"n": n, "layers": [0, -1]}
            return (peak_bytes(lambda: ours(*METRICS, **some)) - peak_bytes(lambda: ours(**some))) / 1e6

        calls = [
            products,
            lambda o=ours: o(*METRICS),
            lambda o=ours: o("hidden_entropy", "attention_entropy"),
            lambda o=ours: o(),
        ]
        bare, everything, two, none = seconds(*calls, repeats=repeats)
        for what, found, against, theirs, wanted in (
            (
                "collect, all metrics, all layers, 4 x 128: s",
                everything,
                "forward and every layer's logits, bare",
                bare,
                "<= 1.6",
            ),
            ("without the logit lens: s", two, "norms alone", none, ""),
            ("extra peak memory of metrics, 16 sequences: MB", extra(16), "4 sequences", extra(4), "about 1"),
        ):
            row = {"what": f"{what} ({name})", "seconds": found, "against": against, "theirs": theirs}
            rows.append({**row, "ratio": found / theirs, "wanted": wanted})
    return rows


def start_rows(repeats: int) -> list[Row]:
    rows = []
    for what, command in (
        ("import tl_l2norm", ["-c", "import tl_l2norm"]),
        ("tl-l2norm --help", ["-m", "tl_l2norm", "--help"]),
    ):
        found, empty = seconds(
            lambda c=command: subprocess.run([sys.executable, *c], check=True, capture_output=True),
            lambda: subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True),
            repeats=repeats,
        )
        rows.append(
            {
                "what": f"{what}: s",
                "seconds": found,
                "against": "python -c ''",
                "theirs": empty,
                "ratio": found / empty,
                "wanted": "< 0.7 s",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", default=["collect", "decode", "step", "batch", "intervene", "features", "metrics", "start"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--source", default="smollm2")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    if set(options.parts) - {"start", "features"}:
        models = {"bridge": l2.load_model(options.source, device="cpu")}
        plain = read(find_source(options.source), torch.float32).model
        try:
            models["hooked, our layout"] = l2.load_model(options.source, backend="hooked", device="cpu")
            models["hooked"] = as_transformer_lens_loads(l2.load_model(options.source, backend="hooked", device="cpu"))
        except ImportError:
            print("HookedTransformer is not there (TransformerLens 4): bridge only", file=sys.stderr)
    run = f"{options.source}, torch {torch.__version__}, {torch.get_num_threads()} threads, median of {options.repeats}"
    print(run)
    parts = {
        "start": lambda: start_rows(options.repeats),
        "collect": lambda: collect_rows(models, options.repeats),
        "decode": lambda: decode_rows(models, plain.eval(), options.repeats),
        "step": lambda: step_rows(models["bridge"], plain.eval()),
        "batch": lambda: batch_rows(models, plain.eval(), options.repeats),
        "intervene": lambda: intervene_rows(models, options.repeats),
        "features": lambda: feature_rows(options.repeats),
        "metrics": lambda: metric_rows(models, options.repeats),
    }
    for name, measure in parts.items():
        if name in options.parts:
            rows = measure()
            print(render_table(pd.DataFrame(rows).rename(columns={"seconds": "ours"}), width=160), flush=True)
            if options.write:
                write_regions(BENCHMARKS, {name: benchmark_region(rows, f"{date.today()}: {run}.")})


if __name__ == "__main__":
    main()
