"""Train the SAEs of the tiny reasoner: `python assets/tiny_reasoner/train_saes.py --model DIR --out DIR`.

One on `resid_post` of each layer, on what the model itself reads and writes in both modes; then their explained variance on
held-out problems. Start it again and it goes on with the layers that are missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tl_l2norm as l2
from tl_l2norm.recording.completions import Completion
from tl_l2norm.tasks.families.compact import COMPACT
from tl_l2norm.tasks.problems import Split

RECIPE = l2.saes.SaeRecipe(d_sae=1024, k=32, n_states=1_000_000, batch_size=2048)
TRAIN, TEST = 2000, 300  # problems


def responses(model: object, n: int, split: Split, seed: int) -> list[Completion]:
    """What the model makes of `n` problems, spread over families and levels, in both modes."""
    levels = range(1, 1 + max(family.levels for family in COMPACT))
    cells = [(family, level) for level in levels for family in COMPACT if level <= family.levels]
    problems = [
        problem
        for family, level in cells
        for problem in l2.make_problems(family.name, n // len(cells), level=level, seed=seed, split=split)
    ]
    found: list[Completion] = []
    for mode in ("think", "direct"):
        prompts = [l2.chat_prompt(model.tokenizer, problem.question, mode=mode) for problem in problems]  # type: ignore
        found += l2.generate(model, prompts, max_new_tokens=128, batch_size=64, record=False, progress=f"{mode}, {split}")
    return found


def main() -> None:
    """Train, evaluate, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-reasoner")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="*", default=None)
    options = parser.parse_args()
    model = l2.load_model(options.model)
    train = responses(model, TRAIN, "train", seed=0)
    saes = l2.train_saes(model, train, save_to=options.out, buffer=1 << 20, layers=options.layers, recipe=RECIPE)
    table = l2.saes.evaluate_saes(model, saes, responses(model, TEST, "test", seed=1))
    print(table.to_string(index=False))
    table.to_json(options.out / "results.json", orient="records", indent=1)


if __name__ == "__main__":
    main()
