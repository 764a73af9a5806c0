"""Whether the tiny reasoner's late-layer norms are higher when it thinks: `python assets/tiny_reasoner/norms.py [--n 300]`.

Measured once, on held-out problems, when model and recipe were fixed. Writes norms.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import tl_l2norm as l2
from tl_l2norm.core.resampling import estimate


def main() -> None:
    """Ask in both modes, compare, write the verdicts in words: overall, and by level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300)
    options = parser.parse_args()
    model = l2.load_model("tiny-reasoner")
    problems = l2.make_mixture(options.n, families="compact", seed=5, split="test")
    results = l2.run_modes(model, problems)  # at the model's own sink ratio: 5 would leave out tokens that do the work
    verdicts = [compare(results, "read").verdict, compare(results, "chosen").verdict]
    for level in sorted({result.problem.level for result in results}):
        found = compare([result for result in results if result.problem.level == level], "chosen")
        verdicts.append(f"Level {level}, the latter: difference {found.difference} prompts.")
    verdicts.append(last_layer(results))
    print("\n".join(verdicts))
    named = {"n": options.n, "seed": 5, "sink_ratio": results[0].trace.provenance.sink_ratio, "verdicts": verdicts}
    (Path(__file__).parent / "norms.json").write_text(json.dumps(named, indent=1) + "\n")


def compare(results, tokens):  # type: ignore[no-untyped-def]
    """Thinking against direct, over the late layers."""
    think, direct = ([result.trace for result in results if result.mode == mode] for mode in ("think", "direct"))
    return l2.analysis.compare_late(think, direct, tokens=tokens)


def last_layer(results):  # type: ignore[no-untyped-def]
    """Mean norms where a direct answer is worked out, at the answer itself, and at thinking tokens."""
    direct, think = ([result.trace for result in results if result.mode == mode] for mode in ("direct", "think"))
    means = {
        "the prompt's last token before a direct answer": [float(t.l2_norms[-1, t.prompt_len - 1]) for t in direct],
        "direct answers": [float(t.l2_norms[-1, t.is_response].mean()) for t in direct if t.is_response.any()],
        "thinking tokens": [float(t.l2_norms[-1, t.in_segment("think")].mean()) for t in think],
        "the prompt's median token, thinking": [float(t.l2_norms[-1, 1 : t.prompt_len].median()) for t in think],
    }
    return (
        "Mean norm after the last layer: " + "; ".join(f"{k} {estimate(np.array(v))}" for k, v in means.items()) + " problems."
    )


if __name__ == "__main__":
    main()
