"""Train the tiny reasoner: `python assets/tiny_reasoner/train.py --out DIR [--resume] [--device cuda]`.

The data of a step depend on seed and step alone, and on a CPU gradients are summed in a fixed order: a run that is resumed
goes on as if it had never stopped, with any number of threads. Nothing but the accuracy of answers is looked at meanwhile.
Then settle.py, which the shipped weights went through too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is divided by chunks of a batch: see Trainer.gradients
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from report import Cell, write_card, write_results
from tokenizer import CONTEXT, make_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tl_l2norm.tasks.problems import FAMILIES, Problem, draw_problems
from tl_l2norm.tasks.verifiers import is_correct

NO_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that a run depends on."""

    layers: int = 12
    width: int = 128
    heads: int = 4
    key_value_heads: int = 2
    mlp: int = 384
    rope_theta: float = 10_000.0
    init_std: float = 0.02
    families: dict[str, float] = field(
        default_factory=lambda: {"modular": 1.0, "swaps": 1.0, "circuit": 1.0, "pointers": 1.0, "maximum": 0.3}
    )
    """How often each family is drawn."""
    common_levels: dict[str, int] = field(default_factory=lambda: {"modular": 9, "swaps": 9, "circuit": 6, "pointers": 7})
    """Levels above these are drawn `rare` times as often with each level more: there thinking is right often, not always."""
    rare: dict[str, float] = field(default_factory=lambda: {"modular": 0.27, "swaps": 0.17, "circuit": 0.05, "pointers": 0.11})
    direct_levels: dict[str, int] = field(
        default_factory=lambda: {"modular": 4, "swaps": 5, "circuit": 4, "pointers": 5, "maximum": 10}
    )
    """Up to these direct answers count `direct_weight`, as they can be learned; above, `guess_weight`."""
    steps: int = 3600
    """With `decay` it may be changed when a run is resumed before the decay: nothing before that depends on them."""
    batch: int = 64
    """Problems in a step, each with its thinking and its direct answer."""
    chunk: int = 8
    """Problems in one forward pass."""
    peak_rate: float = 3e-3
    warmup: int = 50
    """Steps at the start in which the learning rate rises."""
    decay: int = 1400
    """Steps at the end in which it falls to 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    weight_decay: float = 0.05
    clip: float = 1.0
    curriculum: int = 500
    """Steps after which all levels are seen."""
    hard: float = -0.7
    """A level is drawn in proportion to this power of it."""
    answer_weight: float = 4.0
    """Weight of a token of the answer after thinking, against 1 for a token of thinking."""
    direct_weight: float = 2.0
    """Weight of a token of a direct answer."""
    guess_weight: float = 0.1
    """The same where it can only be guessed: there its gradient is noise to the rest."""
    seed: int = 0
    save_every: int = 100
    test_every: int = 500
    test_n: int = 40
    """Problems per family and level in the tests while it trains."""
    final_n: int = 500


def make_model(config: Config, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model before training."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.width // config.heads,
            intermediate_size=config.mlp,
            max_position_embeddings=CONTEXT,
            initializer_range=config.init_std,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Example(NamedTuple):
    """A problem in tokens: the question, then both ways to answer it, neither of which sees the other."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    """0 for the question, 1 for thinking, 2 for the direct answer."""
    targets: list[int]
    """The token to predict at each place, -100 where nothing is."""
    weights: list[float]
    """What each prediction counts."""


def encode(problem: Problem, tokenizer: PreTrainedTokenizerFast, config: Config) -> Example:
    """Both answers after one question."""
    question = _ids(tokenizer, prompt(problem, tokenizer))
    answer = f"{problem.answer}{tokenizer.eos_token}"
    thought = _ids(tokenizer, f"<think>\n{problem.thinking}\n</think>\n\n{answer}")
    opening, direct = _ids(tokenizer, NO_THOUGHT), _ids(tokenizer, answer)
    q, t, d = len(question), len(thought) - 1, len(opening) + len(direct) - 1
    computed = problem.level <= config.direct_levels[problem.family]
    return Example(
        tokens=question + thought[:t] + opening + direct[:-1],
        positions=[*range(q + t), *range(q, q + d)],
        segments=[0] * q + [1] * t + [2] * d,
        targets=[-100] * (q - 1) + thought + [-100] * (len(opening) - 1) + direct,
        weights=[0.0] * (q - 1)
        + [1.0] * (len(thought) - len(direct))
        + [config.answer_weight] * len(direct)
        + [0.0] * (len(opening) - 1)
        + [config.direct_weight if computed else config.guess_weight] * len(direct),
    )


def common_level(family: str, config: Config) -> int:
    """The highest level that is drawn as often as its power says."""
    return config.common_levels.get(family, FAMILIES[family].levels)


def prompt(problem: Problem, tokenizer: PreTrainedTokenizerFast, *, think: bool = True) -> str:
    """The question as the chat template renders it."""
    message = [{"role": "user", "content": problem.question}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=think))


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def draw_batch(config: Config, step: int) -> list[Problem]:
    """The problems of a step, never a test problem."""
    rng = random.Random(f"{config.seed}/{step}")
    progress = min(1.0, step / config.curriculum)
    names = rng.choices(list(config.families), list(config.families.values()), k=config.batch)
    problems = []
    for name in names:
        levels = range(1, 2 + round(progress * (FAMILIES[name].levels - 1)))
        common = common_level(name, config)
        weights = [level**config.hard * config.rare.get(name, 1.0) ** max(0, level - common) for level in levels]
        level = rng.choices(levels, weights)[0]
        problems.append(draw_train(name, rng, level))
    return problems


def draw_train(family: str, rng: random.Random, level: int) -> Problem:
    """One problem that is not for testing."""
    while True:
        problem = Problem(family=family, level=level, **FAMILIES[family].make(rng, level)._asdict())
        if problem.split == "train":
            return problem


def held_out(family: str, level: int, n: int, seed: int = 0) -> list[Problem]:
    """Up to `n` distinct test problems: low levels have fewer."""
    return list(itertools.islice(draw_problems(family, level=level, seed=seed, split="test"), n))


def make_chunks(config: Config, problems: Iterable[Problem], tokenizer: PreTrainedTokenizerFast) -> list[list[Example]]:
    """The examples, those of similar length together, the longest first."""
    examples = sorted((encode(problem, tokenizer, config) for problem in problems), key=lambda e: -len(e.tokens))
    return [examples[i : i + config.chunk] for i in range(0, len(examples), config.chunk)]


def collate(examples: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Inputs of the model, targets, their weights and segments."""
    length = max(len(example.tokens) for example in examples)

    def stack(name: str, fill: int) -> Tensor:
        rows = (getattr(example, name) for example in examples)
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    segments = stack("segments", 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    related = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    inputs = {"input_ids": stack("tokens", 0), "position_ids": stack("positions", 0)}
    inputs["attention_mask"] = (causal & related)[:, None]
    return inputs, stack("targets", -100), stack("weights", 0), segments


def rate(config: Config, step: int) -> float:
    """Linear warm-up, a constant rate, and half a cosine down to 0."""
    left = max(0.0, (config.steps - step) / config.decay)
    return config.peak_rate * min(1.0, (step + 1) / config.warmup, 0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal, for matrices: it learns this in fewer steps than AdamW does.

    `torch.optim.Muon` does the same one matrix after another and in bfloat16, which is slow on a CPU.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all matrices, those of one shape together."""
        for group in self.param_groups:
            shapes = {parameter.shape for parameter in group["params"]}
            for shape in sorted(shapes):
                self._step([p for p in group["params"] if p.shape == shape], group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for parameter in parameters:
            average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
            average.lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(average, group["momentum"]))
        scale = 0.2 * math.sqrt(max(parameters[0].shape))  # the size of AdamW's updates
        for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the closest semi-orthogonal matrices, by five Newton-Schulz steps."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonal(matrices.mT).mT
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Trainer:
    """Model, optimizer and the step that they are at."""

    def __init__(self, config: Config, out: Path, threads: int, device: str = "cpu") -> None:
        self.config, self.out, self.step, self.device = config, out, 0, torch.device(device)
        self.tokenizer = make_tokenizer()
        self.model = make_model(config, self.tokenizer).to(self.device)
        self.parameters = list(self.model.parameters())
        matrices = [p for p in self.parameters if p.ndim == 2 and p is not self.model.lm_head.weight]
        others = [p for p in self.parameters if p.ndim == 1 or p is self.model.lm_head.weight]
        self.optimizers = (
            Muon(matrices, config.peak_rate, config.momentum, config.weight_decay),
            torch.optim.AdamW(others, config.peak_rate, config.betas, weight_decay=0.0),
        )
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def load(self, chunk: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """What `collate` gives, on the model's device."""
        inputs, *rest = collate(chunk)
        targets, weights, segments = (values.to(self.device) for values in rest)
        return {name: values.to(self.device) for name, values in inputs.items()}, targets, weights, segments

    def gradients(self, chunk: Sequence[Example], total: float) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of a chunk, and its losses on thinking and on direct answers."""
        inputs, targets, weights, segments = self.load(chunk)
        used = targets != -100
        direct = segments[used] == 2
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state[used]
        losses = cross_entropy(self.model.lm_head(hidden), targets[used], reduction="none")
        gradients = torch.autograd.grad((losses * weights[used]).sum() / total, self.parameters)
        losses = losses.detach()
        return gradients, torch.stack([losses[~direct].sum(), (~direct).sum(), losses[direct].sum(), direct.sum()])

    def draw(self) -> list[Problem]:
        """The problems of the next step."""
        return draw_batch(self.config, self.step)

    def rate(self) -> float:
        """The learning rate of the next step."""
        return rate(self.config, self.step)

    def train_step(self) -> dict[str, float]:
        """One step of the optimizer; the figures of it."""
        chunks = make_chunks(self.config, self.draw(), self.tokenizer)
        total = sum(sum(example.weights) for chunk in chunks for example in chunk)
        results = list(self.pool.map(lambda chunk: self.gradients(chunk, total), chunks))
        for parameter, *parts in zip(self.parameters, *(gradients for gradients, _ in results), strict=True):
            parameter.grad = sum(parts[1:], parts[0])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
            optimizer.step()
        self.step += 1
        sums = torch.stack([losses for _, losses in results]).sum(0).tolist()
        tokens = sum(len(example.tokens) for chunk in chunks for example in chunk)
        return {
            "think_loss": sums[0] / max(1, sums[1]),
            "direct_loss": sums[2] / sums[3],
            "gradient": float(norm),
            "tokens": tokens,
        }

    def save_checkpoint(self) -> None:
        """Everything that `--resume` needs, replaced in one go."""
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def load_checkpoint(self) -> None:
        """Go on where the last checkpoint was written."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True, map_location=self.device)
        if _trajectory(state["config"]) != _trajectory(asdict(self.config)):
            raise SystemExit(f"{self.out} was trained with another configuration: {state['config']}")
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step = state["step"]
        old, new = ((config["steps"], config["decay"]) for config in (state["config"], asdict(self.config)))
        if old != new and self.step > min(old[0] - old[1], new[0] - new[1]):
            raise SystemExit("the learning rate is falling already: steps and decay cannot be changed any more")

    def log(self, **figures: Any) -> None:
        """Print a line and append it to log.jsonl."""
        figures = {"step": self.step, "time": time.strftime("%H:%M:%S"), **figures}
        print(json.dumps(figures), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")

    def train(self) -> None:
        """All the steps that are left."""
        tokens, start, figures = 0, time.monotonic(), {}
        while self.step < self.config.steps:
            figures = self.train_step()
            tokens += round(figures["tokens"])
            if self.step % 20 == 0:
                speed = tokens / (time.monotonic() - start)
                self.log(**{name: round(value, 4) for name, value in figures.items()}, tokens_per_second=round(speed))
                tokens, start = 0, time.monotonic()
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save_checkpoint()
            if self.step % self.config.test_every == 0 and self.step < self.config.steps:
                self.log(accuracy=self.test_while_training())
                tokens, start = 0, time.monotonic()

    def test_while_training(self) -> dict[str, list[float]]:
        """Accuracy of thinking and of direct answers, by family and level: trivial, medium, and all the hard ones."""
        accuracy = {}
        for name in self.config.families:
            top = common_level(name, self.config)
            for level in sorted({1, top // 2, top, FAMILIES[name].levels}):
                problems = held_out(name, level, self.config.test_n)
                right = [self.count_right(problems, think=think) / len(problems) for think in (True, False)]
                accuracy[f"{name} {level}"] = [round(share, 3) for share in right]
        return accuracy

    @torch.inference_mode()
    def count_right(self, problems: Sequence[Problem], *, think: bool) -> int:
        """How many problems greedy decoding solves."""
        parts = [problems[i : i + 100] for i in range(0, len(problems), 100)]
        self.model.eval()
        right = sum(self.pool.map(lambda part: self._count_right(part, think), parts))
        self.model.train()
        return right

    @torch.inference_mode()
    def _count_right(self, problems: Sequence[Problem], think: bool) -> int:
        tokenizer = self.tokenizer
        texts = [prompt(problem, tokenizer, think=think) for problem in problems]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False).to(
            self.device
        )
        output = self.model.generate(**inputs, max_new_tokens=128 if think else 8, do_sample=False)
        responses = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return sum(bool(is_correct(problem, text)) for problem, text in zip(problems, responses, strict=True))

    def save_model(self) -> None:
        """The files of a Hugging Face model, in half precision."""
        model = Qwen3ForCausalLM(self.model.config)
        model.load_state_dict(self.model.state_dict())
        ids = {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(**ids, do_sample=False, max_new_tokens=128)
        model.half().save_pretrained(self.out / "model")
        self.tokenizer.save_pretrained(self.out / "model")


def _trajectory(config: dict[str, Any]) -> str:
    """What two runs must share to be the same run."""
    skipped = ("steps", "decay", "save_every", "test_every", "test_n", "final_n")
    return json.dumps({name: value for name, value in config.items() if name not in skipped})


def evaluate(trainer: Trainer) -> list[Cell]:
    """Accuracy in every cell, of the weights in the half precision that ships."""
    trainer.model.load_state_dict(Qwen3ForCausalLM.from_pretrained(trainer.out / "model", dtype=torch.float32).state_dict())
    cells = []
    for name in trainer.config.families:
        for level in range(1, FAMILIES[name].levels + 1):
            problems = held_out(name, level, trainer.config.final_n, seed=1)
            guess = Counter(problem.answer for problem in problems).most_common(1)[0][1] / len(problems)
            for mode in ("think", "direct"):
                right = trainer.count_right(problems, think=mode == "think")
                cells.append(Cell(name, level, mode, right, len(problems), guess))
            trainer.log(final=f"{name} {level}", think=str(cells[-2]), direct=str(cells[-1]), n=len(problems))
    return cells


def main() -> None:
    """Train, evaluate, write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model")
    parser.add_argument("--threads", type=int, default=2, help="chunks of a batch that are worked on at once")
    parser.add_argument("--device", default="cpu", help="on a GPU sums are not in a fixed order; --chunk 64 is faster there")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    for name in ("steps", "decay", "batch", "chunk", "seed", "test_every", "test_n", "final_n"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    out, resume = options.pop("out"), options.pop("resume")
    threads, device = options.pop("threads"), options.pop("device")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    trainer = Trainer(Config(**options), out, threads, device)
    if resume and (out / "checkpoint.pt").exists():
        trainer.load_checkpoint()
    elif (out / "checkpoint.pt").exists():
        raise SystemExit(f"{out} holds a checkpoint already: --resume, or another folder")
    trainer.log(config=asdict(trainer.config), threads=threads, device=device)
    trainer.train()
    trainer.save_model()
    size = sum(parameter.numel() for parameter in trainer.parameters)
    write_results(out / "model", asdict(trainer.config), size, evaluate(trainer))
    write_card(out / "model")


if __name__ == "__main__":
    main()
