"""Grade what was trained: `python assets/tiny_reasoner/settle.py DIR/model --out DIR2`.

After train.py a family's hardest level is thought out always or never: a few problems more or less decide it. Here the model
is shaken at a high learning rate and settles at a low one, while that level of a family is drawn only as long as too few of
some training problems are thought out there. It ends when every family is right often there, not always. Problems depend on
seed, step and what the model can do; nothing but the accuracy of thoughts is looked at.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from report import write_card, write_results
from train import Config, Example, Trainer, draw_train, encode, evaluate
from transformers import Qwen3ForCausalLM

from tl_l2norm.tasks.problems import FAMILIES, Problem

OFFSET = 50_000  # of the steps' numbers: other problems than those of train.py


@dataclass(frozen=True, kw_only=True)
class Settling:
    """All that this depends on, beside the configuration of train.py."""

    shaken: int = 72
    """Steps at the high rate."""
    high: float = 0.9
    low: float = 0.3
    """Rates, as shares of the peak in train.py."""
    still: int = 20
    """Steps at the end in which the rate falls to 0."""
    wanted: float = 0.75
    """The hardest level is drawn while a smaller share of problems is thought out word for word."""
    band: tuple[float, float] = (0.6, 0.92)
    """Shares between which it may end."""
    dose: float = 0.06
    """How often that level is drawn meanwhile, against its power."""
    looked_at: int = 64
    """Problems of each family that the share is taken of."""
    every: int = 5
    """Steps between two looks."""
    chunk: int = 16
    """Problems in one forward pass."""
    longest: int = 400
    """Steps after which it gives up."""


class Settler(Trainer):
    """A trainer whose hardest levels are drawn as needed."""

    def __init__(self, config: Config, settling: Settling, model: Path, out: Path, threads: int) -> None:
        super().__init__(config, out, threads)
        self.settling = settling
        self.model.load_state_dict(Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict())
        self.looked_at = {name: self.load(self._examples(name)) for name in config.rare}
        self.thought_out: dict[str, float] = {}
        """Share of problems of each family's hardest level, by the last look."""
        self.still_left: int | None = None

    def _examples(self, family: str) -> list[Example]:
        rng = random.Random(f"{self.config.seed}/{family}")
        problems = [draw_train(family, rng, FAMILIES[family].levels) for _ in range(self.settling.looked_at)]
        return [encode(problem, self.tokenizer, self.config) for problem in problems]

    def draw(self) -> list[Problem]:
        """Levels by their power; the hardest one seldom, and not at all where enough is thought out."""
        rng = random.Random(f"{self.config.seed}/{OFFSET + self.step}")
        problems = []
        for name in rng.choices(list(self.config.families), list(self.config.families.values()), k=self.config.batch):
            levels = range(1, FAMILIES[name].levels + 1)
            weights = [level**self.config.hard for level in levels]
            if name in self.config.rare:
                weights[-1] *= self.settling.dose * (self.thought_out[name] < self.settling.wanted)
            problems.append(draw_train(name, rng, rng.choices(levels, weights)[0]))
        return problems

    def rate(self) -> float:
        """High, low, and to the end falling to 0."""
        share = self.settling.high if self.step < self.settling.shaken else self.settling.low
        fall = 1.0 if self.still_left is None else max(0.02, self.still_left / self.settling.still)
        return self.config.peak_rate * share * min(1.0, (self.step + 1) / 10) * fall

    @torch.inference_mode()
    def look(self) -> bool:
        """Whether all shares of problems that greedy decoding would think out word for word are in the band."""
        for name, (inputs, targets, _, segments) in self.looked_at.items():
            predicted = self.model.lm_head(self.model.model(**inputs, use_cache=False).last_hidden_state).argmax(-1)
            wrong = (predicted != targets) & (targets != -100) & (segments != 2)
            self.thought_out[name] = float((~wrong.any(-1)).float().mean())
        low, high = self.settling.band
        return all(low <= share <= high for share in self.thought_out.values())

    def settle(self) -> None:
        """Steps until the rate has fallen and all shares are in the band."""
        while self.step < self.settling.longest:
            if self.step % self.settling.every == 0:
                settled = self.look()
                self.log(**self.thought_out)
                if settled and self.still_left is None and self.step > self.settling.shaken:
                    self.still_left = self.settling.still
                elif self.still_left == 0:
                    if settled:
                        return
                    self.still_left = None
            self.train_step()
            if self.still_left is not None:
                self.still_left -= 1
        raise SystemExit(f"after {self.step} steps it has not settled: {self.thought_out}; try another seed of train.py")


def main() -> None:
    """Settle, evaluate, write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder model/ that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for log and model")
    parser.add_argument("--threads", type=int, default=2, help="chunks of a batch that are worked on at once")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settling = Settling()
    config = Config(chunk=settling.chunk)
    settler = Settler(config, settling, options.model, options.out, options.threads)
    settler.settle()
    settler.save_model()
    size = sum(parameter.numel() for parameter in settler.parameters)
    write_results(
        options.out / "model",
        asdict(config) | {"settling": asdict(settling) | {"settled_after": settler.step}},
        size,
        evaluate(settler),
    )
    write_card(options.out / "model")
