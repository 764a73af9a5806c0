"""What recording every layer costs on a GPU: `python -m benchmarks.gpu_steps`. Random weights of Qwen3-8B's size."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

import tl_l2norm as l2

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
}


def make_model(device: str) -> TransformerBridge:
    """Qwen3-8B without its weights, and a tokenizer whose tokens it has."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE, eos_token_id=None, pad_token_id=0, bos_token_id=None)
    with torch.device(device):
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    tokenizer = l2.load_model("tiny-reasoner").tokenizer
    return TransformerBridge.boot_transformers("random", hf_model=plain, tokenizer=tokenizer, device=device)


def step_ms(run: Any, few: int, many: int) -> float:
    """Milliseconds of a step: what `many` tokens take more than `few`, so that all that a call does once falls out."""
    seconds = []
    for tokens in (few, many):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(tokens)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / (many - few) * 1e3


def main() -> None:
    """Measure each way in turn, several times over, and print medians with the range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="also Hugging Face's generate and eager steps")
    options = parser.parse_args()
    model = make_model("cuda")
    prompt = "mod 10: 7A+5B*3"

    def ours(steps: str, record: bool) -> Any:
        shared: dict[str, Any] = {"steps": steps, "record": record, "progress": False}
        return lambda n: l2.generate(model, [prompt], max_new_tokens=n, **shared)

    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"].cuda()
    ways: dict[str, tuple[Any, int, int]] = {
        "graph, bare": (ours("graph", False), 32, 256),
        "graph, recorded": (ours("graph", True), 32, 256),
    }
    if options.eager:
        ways |= {
            "Hugging Face": (lambda n: model.original_model.generate(ids, max_new_tokens=n, do_sample=False), 8, 48),
            "eager, bare": (ours("eager", False), 8, 48),
            "eager, recorded": (ours("eager", True), 8, 48),
        }
    for run, few, _ in ways.values():
        run(few)  # what is made at first use
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.times):
        for name, (run, few, many) in ways.items():
            if turn < 2 or name.startswith("graph"):
                found[name].append(step_ms(run, few, many))
    for name, times in found.items():
        print(
            f"{name}: {statistics.median(times):.2f} ms a step [{min(times):.2f}, {max(times):.2f}], n = {len(times)}",
            flush=True,
        )
    ratios = [b / a for a, b in zip(found["graph, bare"], found["graph, recorded"], strict=True)]
    print(f"graph, recorded / bare: {statistics.median(ratios):.3f} {[round(ratio, 3) for ratio in ratios]}")


if __name__ == "__main__":
    main()
