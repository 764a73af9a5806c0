"""What decoding costs, beside TransformerLens and Hugging Face, and where a step's time goes."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import tl_l2norm as l2
from benchmarks.timing import Row, seconds


def decode_rows(models: dict[str, Any], plain: Any, repeats: int) -> list[Row]:
    n = 48
    prompt = list(range(100, 130))
    ids = torch.tensor([prompt])
    rows = []
    for name, model in models.items():
        count = n if name == "bridge" else n // 3
        kept = {"ignore_eos": True, "max_new_tokens": count, "progress": False}
        calls = [
            lambda m=model, k=kept: l2.generate(m, [prompt], **k),
            lambda m=model, k=kept: l2.generate(m, [prompt], record=False, **k),
            lambda m=model, c=count: m.generate(ids, max_new_tokens=c, do_sample=False, stop_at_eos=False, verbose=False),
        ]
        recorded, unrecorded, own = (count / s for s in seconds(*calls, repeats=repeats))
        bound = {"bridge": ">= 1.0", "hooked": ">= 1.05"}.get(name, "")
        rows.append(
            {
                "what": f"generate, all layers, batch 1, tok/s ({name})",
                "seconds": recorded,
                "against": f"{type(model).__name__}.generate",
                "theirs": own,
                "ratio": recorded / own,
                "wanted": bound,
            }
        )
        rows.append(
            {
                "what": f"time with recording ({name})",
                "seconds": count / recorded,
                "against": "our loop without",
                "theirs": count / unrecorded,
                "ratio": unrecorded / recorded,
                "wanted": "<= 1.05",
            }
        )
    return [*rows, *(_beside_hugging_face(models["bridge"], plain, size, repeats) for size in (1, 16, 24))]


def _beside_hugging_face(model: Any, plain: Any, size: int, repeats: int) -> Row:
    """So many rows of equal length, all to the same end."""
    n = 48
    ids = torch.randint(100, 40_000, (size, 30), generator=torch.Generator().manual_seed(0))
    kept: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": n, "batch_size": size, "progress": False}
    theirs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
    ours, hf = seconds(lambda: l2.generate(model, ids.tolist(), **kept), lambda: plain.generate(ids, **theirs), repeats=repeats)
    return {
        "what": f"generate, all layers, {size} at once, tok/s (bridge)",
        "seconds": size * n / ours,
        "against": "Hugging Face generate",
        "theirs": size * n / hf,
        "ratio": hf / ours,
        "wanted": ">= 0.97" if size == 1 else ">= 1.0",
    }


def step_rows(model: Any, plain: Any) -> list[Row]:
    """Where the time of a decode step goes: each part in milliseconds, against the whole of Hugging Face's own step."""
    rows, n = [], 33
    for size in (1, 16):
        ids = torch.randint(100, 40_000, (size, 30), generator=torch.Generator().manual_seed(0))
        kept: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": n, "batch_size": size, "progress": False}

        def ours(ids: Any = ids, kept: Any = kept, record: bool = True) -> object:
            return l2.generate(model, ids.tolist(), record=record, **kept)

        def theirs(ids: Any = ids) -> object:
            return plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False)

        recorded, bare, hf = (1e3 * s / n for s in seconds(ours, lambda: ours(record=False), theirs, repeats=3))
        with profile(activities=[ProfilerActivity.CPU]) as measured:
            ours()
        own = {e.key: e.self_cpu_time_total / 1e3 / n for e in measured.key_averages() if e.key.startswith("aten::")}
        products, attention = (
            own.get("aten::mm", 0) + own.get("aten::addmm", 0),
            own.get("aten::bmm", 0) + own.get("aten::_softmax", 0),
        )
        other = sum(own.values()) - products - attention
        for what, value in (
            ("all, recorded", recorded),
            ("matrix products", products),
            ("attention: batched products and softmax", attention),
            ("all other operations", other),
            ("Python, and what the profiler can't see", recorded - products - attention - other),
            ("of all that recording", recorded - bare),
        ):
            parts = {"what": f"a step of {size}: {what}, ms", "seconds": value, "against": "Hugging Face's step", "theirs": hf}
            rows.append({**parts, "ratio": value / hf, "wanted": ""})
    return rows


def batch_rows(models: dict[str, Any], plain: Any, repeats: int) -> list[Row]:
    """Real answers of many lengths: 16 and 48 prompts whose lengths are spread from 16 to 128 tokens."""
    model = models["bridge"]
    tokenizer = model.tokenizer
    questions = [p.question for p in l2.make_mixture(160, seed=1)]
    prompts = [list(l2.chat_prompt(tokenizer, q).tokens) for q in questions]
    pool = l2.generate(model, prompts, max_new_tokens=128, record=False, batch_size=32)
    order = sorted(range(len(pool)), key=lambda i: len(pool[i].tokens))
    order = [i for i in order if len(pool[i].tokens) >= 16]
    rows = []
    for count in (16, 48):
        targets = [16 * 8 ** (k / (count - 1)) for k in range(count)]
        left, chosen = list(order), []
        for target in targets:
            best = min(left, key=lambda i: abs(len(pool[i].tokens) - target))
            left.remove(best)
            chosen.append(best)
        picked = [prompts[i] for i in sorted(chosen)]
        lengths = [len(pool[i].tokens) for i in sorted(chosen)]

        def theirs(picked: list[list[int]] = picked) -> None:
            for start in range(0, len(picked), 16):
                batch = picked[start : start + 16]
                width = max(map(len, batch))
                tokens = torch.tensor([[2] * (width - len(p)) + p for p in batch])
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
                plain.generate(tokens, attention_mask=mask, max_new_tokens=128, do_sample=False)

        ours, hf = seconds(
            lambda picked=picked: l2.generate(model, picked, max_new_tokens=128, batch_size=16, progress=False),
            theirs,
            repeats=max(1, repeats // 2),
        )
        spread = f"{min(lengths)} to {max(lengths)}, mean {statistics.mean(lengths):.0f}"
        rows.append(
            {
                "what": f"generate, {count} prompts, 16 at once, lengths {spread}: s",
                "seconds": ours,
                "against": "Hugging Face generate, batches of 16",
                "theirs": hf,
                "ratio": hf / ours,
                "wanted": ">= 1.5",
            }
        )
    return rows
