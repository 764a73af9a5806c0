"""Plain Hugging Face computations that share no code with the library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


def layers_of(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def hidden_norms(model: Any, tokens: list[int]) -> Tensor:
    """[1 + layer, pos] norms of the embedding output and of every block's output."""
    states, _ = states_and_attentions(model, tokens)
    return states.double().pow(2).sum(-1).sqrt()


def states_and_attentions(model: Any, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """[1 + layer, pos, d_model] the embedding output and every block's output, by `output_hidden_states` and, for the last
    block (whose entry there is behind the final norm), by a plain forward hook; [layer, head, query, key] attention weights."""
    last: list[Tensor] = []
    handle = layers_of(model)[-1].register_forward_hook(
        lambda _m, _a, out: last.append(out if isinstance(out, Tensor) else out[0])
    )
    try:
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_hidden_states=True, output_attentions=True, use_cache=False)
    finally:
        handle.remove()
    return torch.cat([*out.hidden_states[:-1], last[0]]), torch.cat(out.attentions)


def layer_metrics(model: Any, tokens: list[int]) -> dict[str, Tensor]:
    """Each metric, [layer, pos] or by head [layer, head, pos], as its formula reads, in float64."""
    states, attentions = states_and_attentions(model, tokens)
    squares = states[1:].double().pow(2)
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    with torch.no_grad():
        lens = torch.stack([model.lm_head(norm(state)).double() for state in states[1:]])
    by_head = _entropy(attentions.double())
    return {
        "hidden_entropy": _entropy(squares / squares.sum(-1, keepdim=True)),
        "output_entropy": _entropy(lens.softmax(-1)),
        "attention_entropy": by_head.mean(1),
        "attention_entropy_by_head": by_head,
    }


def _entropy(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0.0).sum(-1)


def greedy(model: Any, tokens: list[int], n: int, *, eos: bool = True) -> list[int]:
    """The response of `model.generate`, greedy, one prompt alone."""
    ids = torch.tensor([tokens])
    extra = {} if eos else {"min_new_tokens": n}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, **extra)
    return out[0, len(tokens) :].tolist()


class Intervened(NamedTuple):
    logits: Tensor  # [pos, d_vocab]
    norms: Tensor  # [layer, pos], float64, of each block's output after all interventions there
    events: list[dict[str, Any]]  # by layer, then step, then position


Decided = tuple[Tensor | None, str, dict[str, Any]] | None  # the new state where it fired, the decision, what else to note
Rule = Callable[[Tensor, float, int], Decided]  # of the state, its norm and its position


def intervened(model: Any, tokens: list[int], prompt_len: int, steps: list[dict[str, Any]]) -> Intervened:
    """One pass over all tokens without a cache; behind each block the steps change its output, in order."""
    norms: list[Tensor] = []
    events: list[dict[str, Any]] = []

    def behind(layer: int) -> Callable[..., Any]:
        def change(_module: Any, args: Any, out: Any) -> Any:
            block = Block(model, layer, args[0][0])
            stream = (out if isinstance(out, Tensor) else out[0])[0].clone()
            judged = [_norm(h) for h in stream]  # what no step changed yet says who is a sink
            for index, step in enumerate(steps):
                if layer in step["layers"]:
                    applied = _applied(step, block, stream, _eligible(step, judged, prompt_len))
                    events.extend({"step": index, "layer": layer, **event} for event in applied)
            norms.append(stream.double().pow(2).sum(-1).sqrt())
            return stream[None] if isinstance(out, Tensor) else (stream[None], *out[1:])

        return change

    handles = [block.register_forward_hook(behind(layer)) for layer, block in enumerate(layers_of(model))]
    try:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    return Intervened(logits, torch.stack(norms), events)


def _applied(step: dict[str, Any], block: Block, stream: Tensor, eligible: list[int]) -> list[dict[str, Any]]:
    """The events of one step at one layer, at the eligible positions; changes the stream in place."""
    rules: dict[str, Callable[..., Rule]] = {
        "suppress": lambda *given: _Swap(*given) if step["how"] == "swap" else partial(_suppress, *given),
        "alrr": lambda *given: partial(_alrr, *given),
        "rerun": lambda *given: partial(_rerun, *given),
        "erss": _Erss,
    }
    rule = rules[step["kind"]](step, block)
    events = []
    for position in eligible:
        before = _norm(stream[position])
        decided = rule(stream[position].clone(), before, position)
        if decided is None:
            continue
        new, decision, more = decided
        if new is not None:
            stream[position] = new
        after = before if new is None else _norm(new)
        event = {"position": position, "decision": decision, "fired": new is not None, "before": before, "after": after}
        events.append({**event, **more})
    return events


def _norm(h: Tensor) -> float:
    return h.float().pow(2).sum().sqrt().item()


def _eligible(step: dict[str, Any], norms: list[float], prompt_len: int) -> list[int]:
    where = step.get("positions", "decode")
    first = {"decode": prompt_len, "all": 0}.get(where, where)
    chosen = range(first, len(norms))
    if step.get("include_sinks", False):
        return list(chosen)
    bound = float("inf")
    if prompt_len > 1:
        prompt = sorted(norms[1:prompt_len])
        bound = 5 * prompt[(len(prompt) - 1) // 2]
    return [position for position in chosen if position > 0 and norms[position] <= bound]


def _suppress(step: dict[str, Any], block: Block, h: Tensor, n: float, position: int) -> Decided:
    if not _chosen(step, block, n, position):
        return None
    if step["how"] == "scale":
        return h * step["scale"], "suppressed", {}
    return h * (min(1.0, step["tau"][block.index] / 4 / n) if n else 1.0), "suppressed", {}


def _chosen(step: dict[str, Any], block: Block, n: float, position: int) -> bool:
    if step["which"] == "random":
        return bool(step["draw"](block.index, position))
    tau = step["tau"][block.index]
    return bool(n > tau if step["which"] == "high" else n < tau)


class _Swap:
    """The rule with all earlier states at one layer, each with its draw."""

    def __init__(self, step: dict[str, Any], block: Block) -> None:
        self.step, self.block = step, block
        self.earlier: list[tuple[Tensor, float]] = []

    def __call__(self, h: Tensor, n: float, position: int) -> Decided:
        earlier = list(self.earlier)
        self.earlier.append((h, self.step["enter"](self.block.index, position)))
        if not _chosen(self.step, self.block, n, position):
            return None
        kept = [v for k, (v, draw) in enumerate(earlier, start=1) if k == 1 or draw < 1 / k]
        if not kept or _norm(kept[-1]) == 0:
            return None, "no earlier token", {}
        return kept[-1] / _norm(kept[-1]) * n, "suppressed", {}


def _alrr(step: dict[str, Any], block: Block, h: Tensor, n: float, position: int) -> Decided:
    tau = step["tau"][block.index]
    limit = step["blowup"] * tau
    if n >= limit:
        return None, "over blowup", {"reruns": 0}
    if n <= tau:
        return None
    reruns, accepted, stopped = 0, 0, "no iterations"
    while reruns < step["max_iters"]:
        again = block.output(h, position, fresh=step["kv"] == "fresh")
        reruns += 1
        n_again = _norm(again)
        if n_again <= tau:
            stopped = "fell below threshold"
            break
        if (n_again - n) / n < step["growth_eps"]:
            stopped = "growth too small"
            break
        if n_again >= limit:
            stopped = "blew up"
            break
        h = (1 - step["alpha"]) * h + step["alpha"] * again
        n = n_again
        accepted += 1
    return (h, "rerun", {"reruns": reruns}) if accepted else (None, stopped, {"reruns": reruns})


def _rerun(step: dict[str, Any], block: Block, h: Tensor, n: float, position: int) -> Decided:
    if n > step["tau"].get(block.index, float("inf")) or not step["draw"](block.index, position):
        return None
    again = block.output(h, position, fresh=step["kv"] == "fresh")
    return (1 - step["alpha"]) * h + step["alpha"] * again, "rerun", {"reruns": 1}


class _Erss:
    """The rule with what it remembers at one layer."""

    def __init__(self, step: dict[str, Any], block: Block) -> None:
        self.step, self.block = step, block
        self.bank: list[Tensor] = list((step.get("bank") or {}).get(block.index, []))
        self.streak = 0
        self.cool = 0

    def __call__(self, h: Tensor, n: float, position: int) -> Decided:
        step, tau = self.step, self.step["tau"][self.block.index]
        self.cool = max(0, self.cool - 1)
        if n > tau and step.get("own_states", True):
            self.join(h, n)
        self.streak = self.streak + 1 if n < step["gamma"] * tau else 0
        if self.streak < step["patience"]:
            return None
        nan = {"cosine": float("nan")}
        if self.cool > 0:
            return None, "cooldown", nan
        if not self.bank:
            return None, "empty bank", nan
        if not step["draw"](self.block.index, position):
            return None, "not drawn", nan
        cosines = [(h @ v).item() / (n * _norm(v)) if n else 0.0 for v in self.bank]
        cosine = max(cosines)
        if cosine < step["cos_min"]:
            return None, "cosine too low", {"cosine": cosine}
        self.streak, self.cool = 0, step["cooldown"]
        nearest = [_norm(v) for v, c in zip(self.bank, cosines, strict=True) if c > cosine - 1e-5]
        if max(nearest) > (1 + 1e-5) * min(nearest):
            step.setdefault("ties", []).append(position)  # of one direction, as a swap gives it to several, but not of one norm
        v = self.bank[cosines.index(cosine)]
        return self.steered(h, self.instead(v, position), position), "steered", {"cosine": cosine}

    def instead(self, v: Tensor, position: int) -> Tensor:
        """What a control steers to, as long as v."""
        match self.step.get("towards", "closest"):
            case "closest":
                return v
            case "random":
                other = self.bank[int(self.step["pick"](self.block.index, position) * len(self.bank))]
            case "direction":
                other = self.step["direction"](self.block.index, position, len(v))
            case _:
                other = self.step["vectors"][self.block.index]
        return other / _norm(other) * _norm(v)

    def join(self, h: Tensor, n: float) -> None:
        if len(self.bank) < self.step["bank_size"]:
            self.bank.append(h)
            return
        norms = [_norm(v) for v in self.bank]
        if n > min(norms):
            self.bank[norms.index(min(norms))] = h

    def steered(self, h: Tensor, v: Tensor, position: int) -> Tensor:
        match self.step["mix"]:
            case "add":
                return h + self.step["beta"] * v
            case "interpolate":
                return h + self.step["beta"] * (v - h)
            case "authors":
                r = self.block.middle(self.block.entry[position], position)
                return h + self.step["beta"] * (v - r)
        raise ValueError(self.step["mix"])


class Block:
    """A layer by hand, one position at a time. `entry` [pos, d_model] is what the layer read in the first pass: its keys and
    values are the ones that a state is attended with."""

    def __init__(self, model: Any, index: int, entry: Tensor) -> None:
        self.model, self.index, self.entry = model, index, entry
        self.layer = layers_of(model)[index]
        self.is_gpt2 = hasattr(model, "transformer")
        self.is_gemma = hasattr(self.layer, "pre_feedforward_layernorm")
        self.attn = self.layer.attn if self.is_gpt2 else self.layer.self_attn
        self.window = getattr(self.attn, "sliding_window", getattr(model.config, "sliding_window", None))

    def output(self, h: Tensor, position: int, *, fresh: bool = False) -> Tensor:
        """What the layer makes of state `h` at a position; `fresh`: with the key and value of `h` for its own position."""
        layer, middle = self.layer, self.middle(h, position, fresh=fresh)
        if self.is_gpt2:
            return middle + layer.mlp(layer.ln_2(middle))
        if self.is_gemma:
            return middle + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(middle)))
        return middle + layer.mlp(layer.post_attention_layernorm(middle))

    def middle(self, h: Tensor, position: int, *, fresh: bool = False) -> Tensor:
        """The stream between attention and MLP."""
        read = self.attended(h, position, fresh)
        return h + (self.layer.post_attention_layernorm(read) if self.is_gemma else read)

    def attended(self, h: Tensor, position: int, fresh: bool) -> Tensor:
        query, key, value = self.heads(h, position)
        keys, values = (part[: position + 1].clone() for part in self.first_pass)
        if fresh:
            keys[position], values[position] = key, value
        start = 0 if self.window is None else max(0, position + 1 - self.window)
        shared = len(query) // len(key)  # query heads that read one key head
        read = []
        for head, q in enumerate(query):
            k, v = keys[start:, head // shared], values[start:, head // shared]
            read.append((k @ q * self.attn.scaling).softmax(0) @ v)
        return (self.attn.c_proj if self.is_gpt2 else self.attn.o_proj)(torch.cat(read))

    @cached_property
    def first_pass(self) -> tuple[Tensor, Tensor]:
        """The keys and values, each [pos, head, d_head]."""
        made = [self.heads(h, position) for position, h in enumerate(self.entry)]
        return torch.stack([key for _, key, _ in made]), torch.stack([value for _, _, value in made])

    def heads(self, h: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a state, each [head, d_head]."""
        attn = self.attn
        if self.is_gpt2:
            query, key, value = attn.c_attn(self.layer.ln_1(h)).view(3, attn.num_heads, attn.head_dim)
            return query, key, value
        x = self.layer.input_layernorm(h)
        query, key, value = (made(x).view(-1, attn.head_dim) for made in (attn.q_proj, attn.k_proj, attn.v_proj))
        if hasattr(attn, "q_norm"):
            query, key = attn.q_norm(query), attn.k_norm(key)
        return self.turned(query, position), self.turned(key, position), value

    def turned(self, x: Tensor, position: int) -> Tensor:
        cos, sin = (part[position] for part in self.rotary)
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], dim=-1) * sin

    @cached_property
    def rotary(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [pos, d_head]."""
        kind = [self.model.config.layer_types[self.index]] if self.is_gemma else []
        cos, sin = self.model.model.rotary_emb(self.entry[None], torch.arange(len(self.entry))[None], *kind)
        return cos[0], sin[0]
