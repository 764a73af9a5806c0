"""Tokens per second of our own loop and of vLLM, with norms and without, on the tiny reasoner; both sides in turn in one run.

OMP_NUM_THREADS=2 VLLM_LOGGING_LEVEL=ERROR python -m benchmarks.engines [--repeats 5] [--rows 64] [--new 128]
    where vLLM is installed, see docs/engines.md
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import tl_l2norm as l2
from benchmarks.regions import markdown_table
from benchmarks.run import seconds


def entries(rows: int, new: int, repeats: int) -> list[dict[str, Any]]:
    """One for each way to write the same responses: greedy, of equal lengths, so that every way does the same work."""
    model = l2.load_model("tiny-reasoner", device="cpu")
    problems = l2.make_mixture(rows, families="compact")
    prompts = [list(l2.chat_prompt(model.tokenizer, p.question).tokens) for p in problems][:rows]
    asked: dict[str, Any] = {"max_new_tokens": new, "ignore_eos": True, "progress": False}
    with l2.load_engine("tiny-reasoner", kv_cache_memory_bytes=1 << 28, max_num_seqs=rows) as engine:
        ways = {
            "our loop, bridge": lambda: l2.generate(model, prompts, batch_size=rows, record=False, **asked),
            "our loop, bridge, recorded": lambda: l2.generate(model, prompts, batch_size=rows, **asked),
            "vLLM": lambda: l2.generate(engine, prompts, record=False, **asked),
            "vLLM, recorded": lambda: l2.generate(engine, prompts, **asked),
        }
        times = seconds(*ways.values(), repeats=repeats)
        same = [a.tokens == b.tokens for a, b in zip(*(ways[name]() for name in ("our loop, bridge", "vLLM")), strict=True)]
    written = len(prompts) * new
    base = {"our loop, bridge, recorded": times[0], "vLLM, recorded": times[2]}
    return [
        {
            "what": f"{name}, {len(prompts)} rows x {new} tokens",
            "tokens/s": round(written / took),
            "of the same bare": f"{base.get(name, took) / took:.2f}",
            "responses as on the bridge": f"{sum(same)} of {len(same)}" if name.startswith("vLLM") else "",
        }
        for name, took in zip(ways, times, strict=True)
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
