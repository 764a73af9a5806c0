"""Tokens per second of Hugging Face, our own loop and vLLM, bare, with norms and with a suppression, on the tiny reasoner; all
in turn in one run.

OMP_NUM_THREADS=2 VLLM_LOGGING_LEVEL=ERROR python -m benchmarks.engines [--repeats 5] [--rows 64] [--new 128]
    where vLLM is installed, see docs/engines.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import tl_l2norm as l2
from benchmarks.regions import markdown_table
from benchmarks.timing import seconds
from tl_l2norm.models.reading import read
from tl_l2norm.models.sources import find_source
from tl_l2norm.text.sequences import pad_left


def hugging_face(prompts: list[list[int]], new: int) -> Callable[[], object]:
    """Transformers' own generate on the same model, greedy, past every end."""
    model = read(find_source("tiny-reasoner"), torch.float32).model.eval()
    tokens, mask = pad_left(prompts, torch.device("cpu"))
    asked: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}

    def run() -> object:
        with torch.inference_mode():
            return model.generate(tokens, attention_mask=mask, **asked)

    return run


def entries(rows: int, new: int, repeats: int) -> list[dict[str, Any]]:
    """One for each way to write the same responses: greedy, of equal lengths, so that every way does the same work."""
    model = l2.load_model("tiny-reasoner", device="cpu")
    problems = l2.make_mixture(rows, families="compact")
    prompts = [list(l2.chat_prompt(model.tokenizer, p.question).tokens) for p in problems][:rows]
    asked: dict[str, Any] = {"max_new_tokens": new, "ignore_eos": True, "progress": False}
    here: dict[str, Any] = {**asked, "batch_size": rows}
    tau = l2.quantile_thresholds(l2.generate(model, prompts, **here), q=0.95)
    acting: dict[str, Any] = {"interventions": l2.Suppression(tau, layers="late")}
    with l2.load_engine("tiny-reasoner", kv_cache_memory_bytes=1 << 28, max_num_seqs=rows) as engine:
        ways = {
            "Hugging Face generate": hugging_face(prompts, new),
            "our loop": lambda: l2.generate(model, prompts, record=False, **here),
            "our loop, recorded": lambda: l2.generate(model, prompts, **here),
            "our loop, recorded, suppressed": lambda: l2.generate(model, prompts, **here, **acting),
            "vLLM": lambda: l2.generate(engine, prompts, record=False, **asked),
            "vLLM, recorded": lambda: l2.generate(engine, prompts, **asked),
            "vLLM, recorded, suppressed": lambda: l2.generate(engine, prompts, **asked, **acting),
        }
        times = dict(zip(ways, seconds(*ways.values(), repeats=repeats), strict=True))
        ours, theirs = ways["our loop"](), ways["vLLM"]()
    same = sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))  # type: ignore[call-overload]
    print(f"{len(prompts)} rows x {new} tokens; {same} of {len(prompts)} responses of vLLM are those of our loop")
    return [
        {
            "what": name,
            "tokens/s": round(len(prompts) * new / took),
            "against the same bare": f"{times[name.partition(',')[0]] / took:.2f}",
        }
        for name, took in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    options = parser.parse_args()
    table = entries(options.rows, options.new, options.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, median of {options.repeats}")
    print(markdown_table(table))


if __name__ == "__main__":
    main()
