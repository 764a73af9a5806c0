"""What users hand in by mistake, or in a form of their own: each is taken as what it is, or refused with what to do.

Run as a script, with a model's folder and a backend: prints a line of JSON for each. In a process of its own, as the test
session checks types at every call, and would refuse most of it before the library can.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import tl_l2norm as l2
from tests.builders import make_results
from tl_l2norm.core.norms import l2_norms
from tl_l2norm.core.thresholds import Thresholds
from tl_l2norm.show.report import report

TEXT, OTHER = "one two three", "ten"  # three tokens, and one: padding of a single token might be the end of a turn
CHAT = [{"role": "user", "content": "Say hi."}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "Well, the"}]
PARTS = [{"type": "text", "text": "Say hi."}]
PROBLEM = l2.Problem(question="What is 2 + 2?", answer="4", family="sums")


ODD_LABELS: list[Any] = [[1], {"a": 1}, Path("x"), np.ones(2), b"x", torch.ones(2), 1j]
ODD_SEEDS: list[Any] = ["abc", float("nan"), -1, None, object(), 1.5]


class Situation:
    """A model, and what a session with it has made so far."""

    def __init__(self, folder: str, backend: Any) -> None:
        self.model = l2.load_model(folder, backend=backend, device="cpu")
        self.tokenizer = self.model.tokenizer
        self.place = Path(tempfile.mkdtemp())

    def encode(self, *texts: str, **options: Any) -> Any:
        return self.tokenizer(list(texts) if len(texts) > 1 else texts[0], add_special_tokens=False, **options)

    @property
    def ids(self) -> list[int]:
        return list(self.encode(TEXT).input_ids)

    @property
    def both(self) -> list[list[int]]:
        return [self.ids, list(self.encode(OTHER).input_ids)]

    def padded(self, side: str) -> Any:
        self.tokenizer.padding_side = side
        return self.encode(TEXT, OTHER, padding=True, return_tensors="pt")

    def collect(self, sequences: Any, **options: Any) -> Any:
        return l2.collect(self.model, sequences, **{"progress": False, **options})

    def generate(self, prompts: Any, **options: Any) -> Any:
        options = {"max_new_tokens": 4, "ignore_eos": True, "progress": False, **options}
        return l2.generate(self.model, prompts, **options)

    @cached_property
    def out(self) -> Any:
        return self.generate([self.ids, [5, 6, 7]], n=3, temperature=1.0, max_new_tokens=8)

    @cached_property
    def bare(self) -> Any:
        return self.generate([self.ids], record=False)

    @cached_property
    def traces(self) -> Any:
        return self.out.traces

    @cached_property
    def tau(self) -> Any:
        return l2.quantile_thresholds(self.traces, 0.5)

    @cached_property
    def suppression(self) -> Any:
        return l2.Suppression(self.tau)

    @cached_property
    def sae(self) -> Any:
        class Sae(torch.nn.Module):
            cfg = types.SimpleNamespace(d_in=self.model.cfg.d_model, d_sae=4)

            def encode(self, x: Any) -> Any:
                return x[..., :4]

        return Sae()


class Mistake(NamedTuple):
    """One line of the table: refused with `says` in the message, or taken for what `same_as` gives."""

    name: str
    do: Callable[[Situation], Any]
    says: str = ""
    same_as: Callable[[Situation], Any] | None = None


def taken(given: Any, meant: Any, **options: Any) -> tuple[Callable[[Situation], Any], str, Callable[[Situation], Any]]:
    return (
        lambda s: s.collect(given(s) if callable(given) else given, **options),
        "",
        lambda s: s.collect(meant(s) if callable(meant) else meant),
    )


def refused(given: Any, says: str) -> tuple[Callable[[Situation], Any], str]:
    return lambda s: s.collect(given(s) if callable(given) else given), says


def option(says: str, **options: Any) -> tuple[Callable[[Situation], Any], str]:
    return lambda s: s.collect([s.ids], **options), says


def setting(says: str, **options: Any) -> tuple[Callable[[Situation], Any], str]:
    return lambda s: s.generate([s.ids], **options), says


def built(says: str, make: Callable[[Situation], Any]) -> tuple[Callable[[Situation], Any], str]:
    return make, says


def _ids(s: Situation) -> Any:
    return [s.ids]


def _both(s: Situation) -> Any:
    return s.both


SEQUENCES = {
    "BatchEncoding of a chat": taken(lambda s: s.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True), CHAT),
    "BatchEncoding of a text": taken(lambda s: s.encode(TEXT), _ids),
    "BatchEncoding, padded on the right": taken(lambda s: s.padded("right"), _both),
    "BatchEncoding, padded on the left": taken(lambda s: s.padded("left"), _both),
    "list of BatchEncodings": taken(lambda s: [s.encode(TEXT), s.encode(OTHER)], _both),
    "dict of tensors": taken(lambda s: {"input_ids": torch.tensor(_ids(s)), "attention_mask": torch.ones(1, 3)}, _ids),
    "dict of lists": taken(lambda s: {"input_ids": s.ids}, _ids),
    "dict of numpy arrays, padded": taken(lambda s: {k: v.numpy() for k, v in s.padded("left").items()}, _both),
    "dict of padded ids without a mask": refused(lambda s: {"input_ids": s.padded("left").input_ids}, "attention_mask"),
    "mask of another shape": refused(lambda s: {"input_ids": [s.ids], "attention_mask": [[1]]}, "attention_mask"),
    "tensor padded on the right": refused(lambda s: s.padded("right").input_ids, "attention_mask"),
    "tensor padded on the left": refused(lambda s: s.padded("left").input_ids, "attention_mask"),
    "nested list, padded": refused(lambda s: s.padded("right").input_ids.tolist(), "attention_mask"),
    "tensor padded with zeros": refused(lambda s: torch.tensor([[5, 6, 7, 9], [5, 9, 0, 0]]), "attention_mask"),
    "to_tokens of several texts": refused(lambda s: s.model.to_tokens([TEXT, OTHER], prepend_bos=False), "attention_mask"),
    "to_tokens of one text": taken(lambda s: s.model.to_tokens(TEXT, prepend_bos=False), _ids),
    "one message": taken(CHAT[0], CHAT),
    "content parts": taken([{"role": "user", "content": PARTS}], CHAT),
    "an image in a message": refused([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "image"),
    "a message without content": refused([{"role": "user", "text": "hi"}], "content"),
    "a message with from and value": refused([{"from": "human", "value": "hi"}], "role"),
    "numpy ids": taken(lambda s: np.array(s.ids), _ids),
    "numpy ids, two-dimensional": taken(lambda s: np.array([s.ids]), _ids),
    "list of numpy ids": taken(lambda s: [np.array(s.ids)], _ids),
    "list of numpy integers": taken(lambda s: [np.int64(i) for i in s.ids], _ids),
    "list of torch scalars": taken(lambda s: list(torch.tensor(s.ids)), _ids),
    "list of lists of torch scalars": taken(lambda s: [list(torch.tensor(s.ids))], _ids),
    "pandas column of texts": taken(pd.Series([TEXT], index=[7]), [TEXT]),
    "pandas column of chats": taken(pd.Series([CHAT, CHAT]), [CHAT, CHAT]),
    "pandas column of ids": taken(lambda s: pd.Series(s.ids), _ids),
    "numpy array of texts": taken(np.array([TEXT]), [TEXT]),
    "a whole table": refused(pd.DataFrame({"prompt": [TEXT]}), "column"),
    "rows with messages": taken([{"messages": CHAT}, {"messages": CHAT}], [CHAT, CHAT]),
    "rows with a prompt": taken([{"prompt": TEXT, "id": 3}, {"prompt": CHAT}], [TEXT, CHAT]),
    "one row": taken({"text": TEXT}, [TEXT]),
    "dict of columns": refused({"prompt": [TEXT, OTHER]}, "'prompt'"),
    "dict of something else": refused({"question": TEXT}, "messages"),
    "an empty dict": refused({}, "messages"),
    "tuple of texts": taken((TEXT, OTHER), [TEXT, OTHER]),
    "generator of texts": taken(lambda s: (t for t in (TEXT, OTHER)), [TEXT, OTHER]),
    "iterator over ids": taken(lambda s: iter(s.ids), _ids),
    "set of texts": refused({TEXT, OTHER}, "order"),
    "a path": refused(Path("prompts.txt"), "read"),
    "bytes": refused(b"one two", "decode"),
    "list of bytes": refused([b"one two"], "decode"),
    "None": refused(None, "None"),
    "list with None": refused([TEXT, None], "sequence 1"),
    "True": refused(True, "True"),
    "list of booleans": refused([True, False], "token ids"),
    "a number": refused(5, "[5]"),
    "float ids": refused([5.0, 6.0], "token ids"),
    "tensor of floats": refused(torch.ones(3), "integer"),
    "numpy floats": refused(np.ones(3), "integer"),
    "tensor of booleans": refused(torch.ones(3, dtype=torch.bool), "integer"),
    "tensor of no dimension": refused(torch.tensor(5), "dimension"),
    "tensor of three dimensions": refused(torch.ones(1, 2, 3, dtype=torch.long), "dimension"),
    "ids nested too deep": refused([[[5, 6]]], "token ids"),
    "texts nested too deep": refused([["a", "b"]], "token ids"),
    "text and ids mixed in one list": refused(["a", 5], "sequence 1"),
    "a problem": refused(PROBLEM, "chat_prompt"),
    "a list of problems": refused([PROBLEM], "chat_prompt"),
    "a model": refused(lambda s: s.model, "expected a text"),
}
OPTIONS = {
    "prompt_lens=2": (lambda s: s.collect([s.ids], prompt_lens=2), "", lambda s: s.collect([s.ids], prompt_lens=[2])),
    "prompt_lens of a tensor": (
        lambda s: s.collect([s.ids], prompt_lens=torch.tensor([2])),
        "",
        lambda s: s.collect([s.ids], prompt_lens=[2]),
    ),
    "prompt_lens of numpy": (
        lambda s: s.collect([s.ids], prompt_lens=np.array([2])),
        "",
        lambda s: s.collect([s.ids], prompt_lens=[2]),
    ),
    "prompt_lens=[2.0]": option("prompt_lens", prompt_lens=[2.0]),
    "prompt_lens=['2']": option("prompt_lens", prompt_lens=["2"]),
    "prompt_lens=[True]": option("prompt_lens", prompt_lens=[True]),
    "prompt_lens=[None]": option("prompt_lens", prompt_lens=[None]),
    "one prompt_len for two sequences": (lambda s: s.collect(s.both, prompt_lens=1), "prompt_lens has 1 entries for 2"),
    "segments of one sequence, flat": option("one list for each sequence", segments=["prompt", "prompt", "answer"]),
    "segments='answer'": option("one list for each sequence", segments="answer"),
    "labels of one dict": (lambda s: s.collect([s.ids], labels={"mode": "think"})[0].labels, "", lambda s: {"mode": "think"}),
    **{f"a label of {what!r:.20}": option("a label is a text", labels=[{"note": what}]) for what in ODD_LABELS},
    "a label of a tensor": (
        lambda s: s.collect([s.ids], labels={"level": torch.tensor(2)})[0].labels,
        "",
        lambda s: {"level": 2},
    ),
    "a label set on a trace": (lambda s: s.traces[0].with_labels(note=[1]), "a label is a text"),
    "segments=5": option("one list for each sequence", segments=5),
    "segments=[5]": option("one list for each sequence", segments=[5]),
    **{f"metrics={given!r}": option("metrics must be", metrics=given) for given in ([None], {1}, b"l2_norm", [["l2_norm"]])},
    "metrics of traces": (lambda s: s.collect([s.ids], metrics=s.traces), "metrics must be"),
    "progress of a table": option("progress", progress=pd.DataFrame()),
    "labels of texts": option("labels", labels=["think"]),
    "seeds=3": (
        lambda s: s.collect(s.traces[0], interventions=[random_half(s)], seeds=3),
        "",
        lambda s: s.collect(s.traces[0], interventions=[random_half(s)], seeds=[3]),
    ),
    "seeds=[1.5]": option("seeds", seeds=[1.5]),
    "metrics=None": option("metrics", metrics=None),
    "generate, metrics=()": setting("record=False records nothing", metrics=()),
    "generate, metrics=('l2_norm',)": setting("record=False nothing", metrics=("l2_norm",)),
    "record=()": setting("record must be True or False", record=()),
    "metrics='hidden_entropy'": (
        lambda s: s.collect([s.ids], metrics="hidden_entropy")[0].metrics["hidden_entropy"],
        "",
        lambda s: s.collect([s.ids], metrics=["hidden_entropy"])[0].metrics["hidden_entropy"],
    ),
    "layers='nine'": option("unknown layers 'nine'", layers="nine"),
    "layers=2.5": option("a layer is an integer", layers=2.5),
    "layers=[1, 2.5]": option("a layer is an integer", layers=[1, 2.5]),
    "layers=True": option("a layer is an integer", layers=True),
    "layers of a numpy integer": (
        lambda s: s.collect([s.ids], layers=np.int64(3)),
        "",
        lambda s: s.collect([s.ids], layers=[3]),
    ),
    "one intervention": (
        lambda s: s.collect(s.traces[0], interventions=s.suppression),
        "",
        lambda s: s.collect(s.traces[0], interventions=[s.suppression]),
    ),
    "interventions=None": (lambda s: s.collect([s.ids], interventions=None), "", lambda s: s.collect([s.ids])),
    "an intervention's class": option("Suppression(...)", interventions=[l2.Suppression]),
    "thresholds for an intervention": (lambda s: s.collect([s.ids], interventions=[s.tau]), "interventions are"),
    "one SAE": (lambda s: s.collect([s.ids], saes=s.sae), "{layer: sae}"),
    "a list of SAEs": (lambda s: s.collect([s.ids], saes=[s.sae]), "{layer: sae}"),
    "batch_size=True": option("batch_size", batch_size=True),
    "batch_size=2.0": option("batch_size", batch_size=2.0),
    "batch_size='8'": option("batch_size", batch_size="8"),
    "sink_ratio='5'": option("sink_ratio", sink_ratio="5"),
    "sink_ratio=nan": option("sink_ratio", sink_ratio=float("nan")),
    "sink_ratio=True": option("sink_ratio", sink_ratio=True),
    "prepend_bos='no'": (lambda s: s.collect(TEXT, prepend_bos="no"), "prepend_bos"),
    "model and prompts exchanged": (lambda s: l2.collect([s.ids], s.model), "TransformerBridge or HookedTransformer"),
    "a model's name": (lambda s: l2.collect("tiny-reasoner", [s.ids]), "load_model"),
}
SETTINGS = {
    "a chat that ends with the assistant's beginning": (
        lambda s: s.generate(PREFILLED)[0].prompt_tokens,
        "",
        lambda s: tuple(s.tokenizer(opened(s) + "Well, the", add_special_tokens=False).input_ids),
    ),
    "max_new_tokens=None": setting("max_new_tokens", max_new_tokens=None),
    "max_new_tokens=1e1": setting("max_new_tokens", max_new_tokens=1e1),
    "max_new_tokens='10'": setting("max_new_tokens", max_new_tokens="10"),
    "max_new_tokens=True": setting("max_new_tokens", max_new_tokens=True),
    "n=2.0": setting("n must be", n=2.0),
    "temperature='0'": setting("temperature", temperature="0"),
    "temperature=nan": setting("temperature", temperature=float("nan")),
    "temperature=None": setting("temperature", temperature=None),
    "temperature=True": setting("temperature", temperature=True),
    "top_p=90": setting("top_p", temperature=1.0, top_p=90),
    "top_p='0.9'": setting("top_p", temperature=1.0, top_p="0.9"),
    "top_k=2.5": setting("top_k", temperature=1.0, top_k=2.5),
    "stop=None": (lambda s: s.generate([s.ids], stop=None), "", lambda s: s.generate([s.ids])),
    "stop of one id": (
        lambda s: s.generate([s.ids], stop=s.generate([s.ids])[0].tokens[1]),
        "",
        lambda s: s.generate([s.ids], stop=[s.generate([s.ids])[0].tokens[1]]),
    ),
    "stop of a tensor": (
        lambda s: s.generate([s.ids], stop=torch.tensor([s.generate([s.ids])[0].tokens[1]])),
        "",
        lambda s: s.generate([s.ids], stop=[s.generate([s.ids])[0].tokens[1]]),
    ),
    "stop=[None]": setting("stop", stop=[None]),
    "stop=[1.5]": setting("stop", stop=[1.5]),
    "stop of bytes": setting("stop", stop=b"x"),
    "stop of a table": setting("stop", stop=pd.DataFrame({"x": ["y"]})),
    "stop of a dict": setting("stop", stop={5: "x"}),
    **{f"on_finish={given!r:.9}": setting("on_finish must be a function", on_finish=given) for given in (5, "print", [print])},
    "n=10**30": setting("n must be at most", n=10**30, temperature=1.0),
    "progress=5": setting("progress", progress=5),
    "a label of bytes": setting("a label is a text", labels={"note": b"x"}),
    "stop of an id that no token has": setting("stop", stop=[10**7]),
    "ignore_eos='no'": setting("ignore_eos", ignore_eos="no"),
    "seed=None": setting("seed", seed=None),
    "seed=1.5": setting("seed", seed=1.5),
    "seed of a numpy integer": (
        lambda s: s.generate([s.ids], temperature=1.0, seed=np.int64(3)),
        "",
        lambda s: s.generate([s.ids], temperature=1.0, seed=3),
    ),
    "a chat with the assistant's message cut out": (
        lambda s: s.generate([*CHAT, {"role": "assistant", "content": ""}])[0].prompt_tokens,
        "",
        lambda s: s.generate(CHAT)[0].prompt_tokens,
    ),
}
INTERVENTIONS = {
    "a bare float": built("{layer: value}", lambda s: l2.Suppression(150.0)),
    "a list": built("{layer: value}", lambda s: l2.Suppression([100.0, 150.0])),
    "a tensor": built("{layer: value}", lambda s: l2.Suppression(torch.ones(4))),
    "traces for thresholds": built("iqr_thresholds", lambda s: l2.Suppression(s.traces)),
    "generations for thresholds": built("iqr_thresholds", lambda s: l2.ERSS(s.out)),
    "thresholds=None": built("thresholds", lambda s: l2.ALRR(None)),
    "a threshold in quotes": built("layer 3", lambda s: l2.Suppression({3: "5"})),
    "a threshold of None": built("layer 3", lambda s: l2.Suppression({3: None})),
    "a layer in quotes": built("by layer", lambda s: l2.Suppression({"3": 5.0})),
    "match=None": built("match", lambda s: l2.Suppression(s.tau, which="matched", match=None)),
    "match of generations": built("out.log", lambda s: l2.Suppression(s.tau, which="matched", match=s.out)),
    "layers='nine', before any run": built("unknown layers 'nine'", lambda s: l2.Suppression(s.tau, layers="nine")),
    "layers=2.5, before any run": built("a layer is an integer", lambda s: l2.Suppression(s.tau, layers=2.5)),
    "positions=True": built("positions", lambda s: l2.Suppression(s.tau, positions=True)),
    "positions=2.0": built("positions", lambda s: l2.Suppression(s.tau, positions=2.0)),
    "include_sinks='no'": built("include_sinks", lambda s: l2.Suppression(s.tau, include_sinks="no")),
    "scale='0.1'": built("scale", lambda s: l2.Suppression(s.tau, scale="0.1")),
    "p='a half'": built("p must be", lambda s: l2.Suppression(which="random", p="a half")),
    "alike='norm'": built("alike holds", lambda s: l2.Suppression(s.tau, which="matched", match=s.out.log, alike="norm")),
    "which='High'": built("which must be one of", lambda s: l2.Suppression(s.tau, which="High")),
    "seed of 1.5": built("seed", lambda s: l2.Suppression(which="random", seed=1.5)),
    "max_iters=2.5": built("max_iters", lambda s: l2.ALRR(s.tau, max_iters=2.5)),
    "patience=2.5": built("patience", lambda s: l2.ERSS(s.tau, patience=2.5)),
    "cos_min='0.5'": built("cos_min", lambda s: l2.ERSS(s.tau, cos_min="0.5")),
    "a bank of one tensor": built("{layer: states}", lambda s: l2.ERSS(s.tau, bank=torch.ones(2, 8))),
    "a bank of lists": built("bank", lambda s: l2.ERSS(s.tau, bank={3: [[1.0, 2.0]]})),
    "q='0.95'": built("q must be", lambda s: l2.quantile_thresholds(s.traces, "0.95")),
    "q of several": built("q must be", lambda s: l2.quantile_thresholds(s.traces, [0.5, 0.9])),
    "q of a fraction": (
        lambda s: dict(l2.quantile_thresholds(s.traces, Fraction(1, 2))),
        "",
        lambda s: dict(l2.quantile_thresholds(s.traces, 0.5)),
    ),
    "k of a decimal": (
        lambda s: dict(l2.iqr_thresholds(s.traces, Decimal("1.5"))),
        "",
        lambda s: dict(l2.iqr_thresholds(s.traces, 1.5)),
    ),
    "k of a fraction, adapting": (lambda s: l2.AdaptiveIQR(k=Fraction(3, 2)), "", lambda s: l2.AdaptiveIQR(k=1.5)),
    "Thresholds of a number": built("{layer: value}", lambda s: Thresholds(5.0)),
    "Thresholds of a list": built("{layer: value}", lambda s: Thresholds([(3, 5.0)])),
    "positions of an array": built("positions", lambda s: l2.Suppression(s.tau, positions=np.array([3, 4]))),
    "positions of a list": built("positions", lambda s: l2.Suppression(s.tau, positions=["decode"])),
    "k='1.5'": built("k must be", lambda s: l2.iqr_thresholds(s.traces, "1.5")),
    "warmup=2.5": built("warmup", lambda s: l2.AdaptiveIQR(warmup=2.5)),
    "hooks with prompt_lens=3": built("prompt_lens has 1 entries for 2 rows", lambda s: hooked(s, prompt_lens=3)),
    "hooks with stop_ids in quotes": built("stop_ids", lambda s: hooked(s, stop_ids="</s>")),
    "two sink ratios in one run": built(
        "sink_ratio", lambda s: s.collect(s.traces[0], interventions=[l2.ALRR(s.tau, sink_ratio=7.0)], sink_ratio=9.0)
    ),
    "thresholds of another sink ratio": built(
        "sink", lambda s: s.collect(s.traces[0], interventions=[s.suppression], sink_ratio=9.0)
    ),
}
TRACES = {
    "thresholds of generations": (lambda s: dict(l2.iqr_thresholds(s.out)), "", lambda s: dict(l2.iqr_thresholds(s.traces))),
    "thresholds of one trace": (
        lambda s: dict(l2.quantile_thresholds(s.traces[0])),
        "",
        lambda s: dict(l2.quantile_thresholds(s.traces[:1])),
    ),
    "thresholds of a completion": (
        lambda s: dict(l2.quantile_thresholds(s.out[0])),
        "",
        lambda s: dict(l2.quantile_thresholds(s.traces[:1])),
    ),
    "frame of generations": (lambda s: l2.to_frame(s.out), "", lambda s: l2.to_frame(s.traces)),
    "frame of one trace": (lambda s: l2.to_frame(s.traces[0]), "", lambda s: l2.to_frame(s.traces[:1])),
    "frame of a completion": (lambda s: l2.to_frame(s.out[0]), "", lambda s: l2.to_frame(s.traces[:1])),
    "frame of completions without traces": (lambda s: l2.to_frame(s.bare), "has no trace"),
    "frame of tokens": (lambda s: l2.to_frame([s.ids]), "expected traces"),
    "frame of a tensor": (lambda s: l2.to_frame(torch.ones(2, 2)), "expected traces"),
    "saving generations": (
        lambda s: l2.load_traces(l2.save_traces(s.place / "out", s.out)),
        "",
        lambda s: s.traces,
    ),
    "saving one trace": (
        lambda s: l2.load_traces(l2.save_traces(s.place / "one", s.traces[0])),
        "",
        lambda s: s.traces[:1],
    ),
    "saving, path and traces exchanged": (lambda s: l2.save_traces(s.traces, s.place / "x"), "path"),
    "widget of generations": (
        lambda s: l2.widgets.tokens(s.out).fragment(),
        "",
        lambda s: l2.widgets.tokens(s.traces).fragment(),
    ),
    "widget of a completion": (
        lambda s: l2.widgets.tokens(s.out[0]).fragment(),
        "",
        lambda s: l2.widgets.tokens(s.traces[0]).fragment(),
    ),
    "widget, layer='late'": (lambda s: l2.widgets.tokens(s.out, layer="late"), "layer"),
    "widget, layer=2.5": (lambda s: l2.widgets.tokens(s.out, layer=2.5), "a layer is an integer"),
    "widget, max_tokens='10'": (lambda s: l2.widgets.tokens(s.traces, max_tokens="10"), "max_tokens"),
    "widget, titles of one text": (
        lambda s: l2.widgets.tokens(s.traces[0], titles="mine").titles,
        "",
        lambda s: ("mine",),
    ),
    "explorer, features of no layer": (lambda s: l2.widgets.explorer(s.out, features=[1]), "latents by layer"),
    "explorer, events that are no table": (lambda s: l2.widgets.explorer(s.traces, events=[1]), "a table as out.events"),
    "fragment of None": (lambda s: l2.figures.fragment(None), "a figure is what l2.figures draws"),
    "accuracy of None": (lambda s: l2.accuracy(PROBLEM, None), "1 problems and 0 responses: give at least one of each"),
    "accuracy of a number": (lambda s: l2.accuracy(PROBLEM, 4), "responses are what generate returns, or texts, got 4"),
    "accuracy of a number among texts": (lambda s: l2.accuracy([PROBLEM, PROBLEM], ["4", 4]), "or texts, got 4"),
    "heatmap of a completion": (
        lambda s: l2.figures.token_heatmap(s.out[0]).to_json(),
        "",
        lambda s: l2.figures.token_heatmap(s.traces[0]).to_json(),
    ),
    "heatmap of several": (lambda s: l2.figures.token_heatmap(s.out), "one trace"),
    "heatmap of one in a list": (
        lambda s: l2.figures.token_heatmap([s.traces[0]]).to_json(),
        "",
        lambda s: l2.figures.token_heatmap(s.traces[0]).to_json(),
    ),
    "curve of generations": (
        lambda s: l2.analysis.layer_curve(s.out, mode="think").to_frame(),
        "",
        lambda s: l2.analysis.layer_curve(s.traces, mode="think").to_frame(),
    ),
    "curve, quantity=5": (lambda s: l2.analysis.layer_curve(s.traces, mode="think", quantity=5), "quantity must be text"),
    "curve, mode=5": (lambda s: l2.analysis.layer_curve(s.traces, mode=5), "mode must be text"),
    **{
        f"curve, seed={given!r:.6}": (
            lambda s, g=given: l2.analysis.layer_curve(s.traces, mode="think", seed=g),
            "seed must be",
        )
        for given in ODD_SEEDS
    },
    **{
        f"curve, resamples={given!r}": (
            lambda s, g=given: l2.analysis.layer_curve(s.traces, mode="think", resamples=g),
            "resamples must be",
        )
        for given in (0, None, -1, "9", 1.5, 10**30)
    },
    "comparison, seed=nan": (lambda s: l2.analysis.compare_late(s.out, s.out, seed=float("nan")), "seed must be"),
    "comparison, over=problems": (lambda s: l2.analysis.compare_late(s.out, s.out, over="problems"), "over"),
    "comparison, match=all": (lambda s: l2.analysis.compare_late(s.out, s.out, match="all"), "match"),
    "top tokens, several layers": (lambda s: l2.analysis.top_tokens(s.traces, [7], 0), "a layer is an integer, got [7]"),
    "top tokens, k=2.5": (lambda s: l2.analysis.top_tokens(s.traces, 7, 0, k=2.5), "k must be an integer of at least 1"),
    "comparison, resamples=0": (lambda s: l2.analysis.compare_late(s.out, s.out, resamples=0), "resamples must be"),
    "loading from None": (lambda s: l2.load_traces(None), "path must be a path"),
    "loading from 5": (lambda s: l2.load_traces(5), "path must be a path"),
    "norms of an array": (lambda s: l2_norms(np.ones((2, 3))), "takes a tensor"),
    "norms of a list": (lambda s: l2_norms([[1.0, 2.0]]), "takes a tensor"),
    "selection, by=5": (lambda s: l2.select(s.out, by=5), "by must be text"),
    "selection, by a list": (lambda s: l2.select(s.out, by=["norm_sum"]), "by must be text"),
    "selection, seed='abc'": (lambda s: l2.select(s.out, by="random", seed="abc"), "seed must be"),
    "scores, seed=None": (lambda s: l2.score_table(s.out, seed=None), "seed must be"),
    "accuracy, by=[]": (lambda s: l2.analysis.accuracy_table(results(), by=[]), "give any of mode, family, level"),
    "accuracy, by=5": (lambda s: l2.analysis.accuracy_table(results(), by=5), "by must be a name"),
    "accuracy of one result": (
        lambda s: l2.analysis.accuracy_table(results()[0]),
        "",
        lambda s: l2.analysis.accuracy_table(results()[:1]),
    ),
    "a report of one result": (
        lambda s: report(results()[0], path=s.place / "one.html").name,
        "",
        lambda s: report(results()[:1], path=s.place / "one.html").name,
    ),
    "a report of 5": (lambda s: report(5, path=s.place / "r.html"), "run_modes"),
    **{
        f"a report, {name}={given!r:.6}": (lambda s, n=name, g=given: report(results(), **{"path": s.place / "r", n: g}), name)
        for name, values in {
            "examples": (None, "3", float("nan"), -1),
            "path": (None, 5),
            "title": (5, None),
            "seed": ODD_SEEDS,
        }.items()
        for given in values
    },
    "problems, question=5": (lambda s: l2.load_problems([{"q": "x"}], question=5), "question is the name of a column"),
    "problems from a long text": (lambda s: l2.load_problems("x" * 5000), "no problems at"),
    "modes, none": (lambda s: asked(s, [PROBLEM], []), "no modes given"),
    "modes=5": (lambda s: asked(s, [PROBLEM], 5), "modes must be"),
    **{
        f"modes, seed={given!r:.6}": (lambda s, g=given: asked(s, [PROBLEM], "direct", seed=g), "seed must be")
        for given in ODD_SEEDS
    },
    "modes, save_to=5": (lambda s: asked(s, [PROBLEM], "direct", save_to=5), "save_to must be a path"),
    "evaluate, out=5": (
        lambda s: l2.evaluate(s.model, l2.make_problems("modular", 2), [l2.Arm("a"), l2.Arm("b")], out=5),
        "out must be a path",
    ),
    "modes, max_direct_tokens='3'": (
        lambda s: asked(s, [PROBLEM], ["think", "direct"], max_direct_tokens="3"),
        "max_direct_tokens",
    ),
    "modes, progress=5": (lambda s: asked(s, [PROBLEM], "direct", progress=5), "progress"),
    "suppression, seed=nan": (
        lambda s: l2.experiments.suppress_and_ask(s.model, [PROBLEM], s.traces, seed=float("nan")),
        "seed must be",
    ),
    "suppression, no quantiles": (
        lambda s: l2.experiments.suppress_and_ask(s.model, [PROBLEM], s.traces, quantiles=[]),
        "no quantiles",
    ),
    "suppression of a problem twice": (
        lambda s: l2.experiments.suppress_and_ask(s.model, [PROBLEM, PROBLEM], s.traces),
        "some problems are the same",
    ),
    "curve, tokens='choosen'": (lambda s: l2.analysis.layer_curve(s.traces, mode="think", tokens="choosen"), "tokens"),
    "curve, quantity='norm'": (lambda s: l2.analysis.layer_curve(s.traces, mode="think", quantity="norm"), "'norm'"),
    "comparison of generations": (
        lambda s: l2.analysis.compare_late(s.out, s.out).difference.n,
        "",
        lambda s: l2.analysis.compare_late(s.traces, s.traces).difference.n,
    ),
    "a figure of one curve": (
        lambda s: l2.figures.norm_curves(l2.analysis.layer_curve(s.traces, mode="think")).to_json(),
        "",
        lambda s: l2.figures.norm_curves([l2.analysis.layer_curve(s.traces, mode="think")]).to_json(),
    ),
    "a figure of traces": (lambda s: l2.figures.norm_curves(s.traces), "layer_curve"),
    "selection among traces": (lambda s: l2.select(s.traces, by="norm_sum"), "completions"),
    "selection by an unknown score": (lambda s: l2.select(s.out, by="norm_sums"), "Did you mean 'norm_sum'"),
    "selection from one completion": (
        lambda s: l2.select(s.out[0], by="first").texts,
        "",
        lambda s: l2.select(s.out[:1], by="first").texts,
    ),
    "scores with a bare threshold": (lambda s: l2.score_table(s.out, thresholds=150.0), "{layer: value}"),
    "scores with one problem": (lambda s: l2.score_table(s.out, problems=PROBLEM), "problems"),
    "dynamics, by='family'": (
        lambda s: l2.analysis.dynamics(s.traces, s.traces, by="famly"),
        "'famly'",
    ),
    "accuracy, by='mode'": (lambda s: l2.analysis.accuracy_table([], by="mode"), "no results"),
    "accuracy of traces": (lambda s: l2.analysis.accuracy_table(s.traces), "run_modes"),
    "a report of generations": (lambda s: report(s.out, path=s.place / "r.html"), "run_modes"),
    "labels of numpy, saved": (
        lambda s: l2.load_traces(l2.save_traces(s.place / "l", s.traces[0].with_labels(level=np.int64(2))))[0].labels,
        "",
        lambda s: {"level": 2},
    ),
    "quantiles of one number": (
        lambda s: l2.experiments.suppress_and_ask(s.model, [PROBLEM], s.traces, quantiles=1.5),
        "quantiles must be between 0 and 1",
    ),
    "suppression of a problem without answer": (
        lambda s: l2.experiments.suppress_and_ask(s.model, l2.Problem(question="Why?", answer=None, family="x"), s.out),
        "known answers",
    ),
    "modes of texts": (lambda s: l2.run_modes(s.model, ["What is 2 + 2?"]), "Problem(question="),
    "modes, one word": (
        lambda s: [r.mode for r in asked(s, [PROBLEM], "direct")],
        "",
        lambda s: ["direct"],
    ),
    "modes of one problem": (
        lambda s: [r.mode for r in asked(s, PROBLEM, ["direct"])],
        "",
        lambda s: ["direct"],
    ),
    "modes, an unknown one": (lambda s: asked(s, [PROBLEM], ["thinking"]), "'thinking'"),
}
MISTAKES = {
    name: Mistake(name, *line)
    for table in (SEQUENCES, OPTIONS, SETTINGS, INTERVENTIONS, TRACES)
    for name, line in table.items()
}


def opened(s: Situation) -> str:
    return str(s.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))


def random_half(s: Situation) -> Any:
    return l2.Suppression(layers="all", which="random", p=0.5)


def hooked(s: Situation, **options: Any) -> Any:
    with s.suppression.hooks(s.model, **options):
        return s.model(torch.tensor([[5, 6, 7], [8, 9, 10]]))


def asked(s: Situation, problems: Any, modes: Any, **options: Any) -> Any:
    options = {"max_direct_tokens": 4, "max_new_tokens": 4, "progress": False, **options}
    return l2.run_modes(s.model, problems, modes=modes, **options)


def results() -> Any:
    return make_results(2)


def plain(x: Any) -> Any:
    """Something that can be compared."""
    if isinstance(x, l2.Trace):
        return [x.tokens.tolist(), x.prompt_len, x.layers, plain(x.l2_norms)]
    if isinstance(x, l2.recording.Generations | tuple | list):
        return [plain(one) for one in x]
    if isinstance(x, l2.recording.Completion):
        return [x.text, x.prompt_tokens, x.tokens, x.finish_reason]
    if isinstance(x, torch.Tensor):
        return x.double().numpy().round(3).tolist()
    if isinstance(x, pd.DataFrame):
        return x.to_csv()
    return x


def outcomes(folder: str, backend: str, only: str = "") -> Iterator[dict[str, Any]]:
    """For each mistake what came: `error` and `message`, or whether it was taken as it was meant."""
    situation = Situation(folder, backend)
    for name, mistake in MISTAKES.items():
        if only in name:
            yield {"name": name} | _outcome(mistake, situation)


def _outcome(mistake: Mistake, situation: Situation) -> dict[str, Any]:
    try:
        taken_as = mistake.do(situation)
    except Exception as error:
        return {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
    meant = mistake.same_as is not None and plain(taken_as) == plain(mistake.same_as(situation))
    return {"as_meant": meant, "taken_as": repr(taken_as)[:200]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in outcomes(*sys.argv[1:]):
            print(json.dumps(line), flush=True)
