"""The paper's claims on SmolLM2: trains SAEs for 12 of its 30 layers, then analyses; about an hour on 2 cores.

python -m benchmarks.smollm2 --out FOLDER [--n 48]    goes on from what FOLDER holds
python -m benchmarks.pages --smollm2 FOLDER           writes what it found into docs/claims.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tl_l2norm as l2

LAYERS = (0, 5, 10, 15, *range(22, 30))
"""All late ones, and some before them for the curves."""
RECIPE = l2.saes.SaeRecipe(d_sae=1152, k=32, n_states=200_000)
N_ANSWERED, N_ASKED = 64, 600
"""Problems whose responses SAEs are trained on, and whose prompts."""
ROOM = 256  # tokens: at 160, as by default, a fifth of the responses are cut off, and verdicts on samples refused
TEMPERATURE = 0.6  # chosen by accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--n", type=int, default=48, help="problems, half of them to choose features on")
    options = parser.parse_args()
    model = l2.load_model("smollm2")
    train = l2.make_mixture(N_ASKED, split="train")
    results = l2.run_modes(model, train[:N_ANSWERED], max_new_tokens=ROOM, batch_size=16, save_to=options.out / "train")
    asked = [l2.chat_prompt(model.tokenizer, p.question, mode=mode) for p in train[N_ANSWERED:] for mode in ("think", "direct")]
    saes = l2.train_saes(
        model,
        [*(result.trace for result in results), *asked],
        save_to=options.out / "saes",
        layers=LAYERS,
        recipe=RECIPE,
        buffer=1 << 21,  # one pass for all layers
    )
    problems = l2.make_mixture(options.n, split="test")
    analysis = l2.analyse(
        model,
        saes,
        problems,
        quantiles=0.8,
        max_new_tokens=ROOM,
        temperature=TEMPERATURE,
        batch_size=16,
        save_to=options.out / "analysis",
    )
    print(analysis)
    l2.paper.analysis_report(analysis, path=options.out / "analysis.html")


if __name__ == "__main__":
    main()
