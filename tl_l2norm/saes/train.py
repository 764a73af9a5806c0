"""Train sparse autoencoders on a model's residual stream, with SAELens."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_l2norm.core.arguments import as_path
from tl_l2norm.core.bars import without_bars
from tl_l2norm.core.errors import InputError
from tl_l2norm.core.layers import Layers, resid_post, resolve_layers
from tl_l2norm.core.norms import find_sinks, l2_norms, sink_bounds
from tl_l2norm.core.presets import sink_ratio_of
from tl_l2norm.core.random_draws import hash_keys
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.decode_check import batches
from tl_l2norm.models.lean import lean
from tl_l2norm.saes.config import CONFIG_FILE, TrainingNote, parse_sae_metadata, read_json
from tl_l2norm.saes.load import load_saes, require_sae_lens
from tl_l2norm.text.inputs import SequenceLike
from tl_l2norm.text.sequences import TokenSequence, pad_left, tokenize

_BARS = ("sae_lens.training.sae_trainer", "sae_lens.training.activation_scaler")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeRecipe:
    """How an SAE is trained: TopK, as in Gao et al., arXiv 2406.04093.

    Attributes:
        d_sae: latents; 8 x d_model by default.
        k: active latents of each state.
        n_states: states that each SAE sees.
        batch_size: states in a step.
        lr: Adam's learning rate; 2e-4 * sqrt(2^14 / d_sae) by default.
        seed: of the first weights and of the order of states.

    Examples:
        >>> l2.saes.SaeRecipe(d_sae=512, k=16, n_states=500_000)
        SaeRecipe(d_sae=512, k=16, n_states=500000, batch_size=2048, lr=None, seed=0)
    """

    d_sae: int | None = None
    """Latents; 8 x d_model by default."""
    k: int = 32
    """Active latents of each state."""
    n_states: int = 2_000_000
    """States that each SAE sees, one for each token and pass over the prompts."""
    batch_size: int = 2048
    """States in a step."""
    lr: float | None = None
    """Adam's learning rate; 2e-4 * sqrt(2^14 / d_sae) by default. It rises over 5% of the steps and falls over the last 20%."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d_sae", "k", "n_states", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.n_states < self.batch_size:
            raise InputError(f"n_states must be at least batch_size ({self.batch_size}), got {self.n_states}")
        if self.d_sae is not None and self.k > self.d_sae:
            raise InputError(f"k must be at most d_sae ({self.d_sae}), got {self.k}")
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"lr must be over 0, got {self.lr}")


def train_saes(
    model: Any,
    prompts: SequenceLike | Iterable[SequenceLike],
    *,
    save_to: str | Path,
    layers: Layers = "late",
    recipe: SaeRecipe | None = None,
    buffer: int = 1 << 18,
    sequences_at_once: int = 32,
    sink_ratio: float | None = None,
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> dict[int, Any]:
    """Train an SAE on `resid_post` of each layer, one after the other, and save each as it is done.

    States are computed as they are needed: at most `buffer` are kept, of as many layers as fit. Padding and attention sinks are
    left out (one sink would be all of the variance). The input is scaled by one number, which is folded into the weights at the
    end, so that features see a state's norm. The same call goes on with the layers that are not there yet.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        prompts: texts, chats, token ids, or values with `.tokens`, such as completions in both modes; all their tokens count.
        save_to: the folder, one SAELens folder for each layer: `layer_9/cfg.json` and `layer_9/sae_weights.safetensors`.
        layers: which blocks; the late ones by default.
        recipe: sizes and steps.
        buffer: states kept to be mixed; where all prompts fit, they go through the model once and not again, for as many layers
            at once as fit too.
        sequences_at_once: sequences in one pass of the model.
        sink_ratio: a norm over this many times its layer's median over the prompt is a sink's; 5 by default (20 for
            tiny-reasoner).
        prepend_bos: for plain texts: BOS or none; by default what the model's tokenizer adds.
        progress: show progress bars.

    Returns:
        SAEs for inference, by layer.

    Raises:
        ImportError: there is something to train and SAELens isn't installed.
        ValueError: bad input, or a folder that holds SAEs of another model or recipe.

    Examples:
        >>> recipe = l2.saes.SaeRecipe(d_sae=64, k=4, n_states=1024, batch_size=128)
        >>> l2.train_saes(model, think, save_to="saes", layers=[9], recipe=recipe, progress=False)
        {9: Sae(topk, 128 -> 64, blocks.9.hook_resid_post)}
    """
    backend, folder, recipe = backend_of(model), as_path("save_to", save_to), recipe or SaeRecipe()
    chosen, sink_ratio = resolve_layers(layers, backend.n_layers), sink_ratio_of(model, sink_ratio)
    for name, count in (("sequences_at_once", sequences_at_once), ("buffer", buffer // (2 * recipe.batch_size))):
        if count < 1:
            raise InputError(f"{name} is too small: at least 1 sequence at once, and a buffer of two batches")
    items = tokenize(backend, prompts, prepend_bos=prepend_bos)
    if all(len(item) == 1 for item in items):
        raise InputError("each prompt is one token, and first tokens are left out as attention sinks: give longer ones")
    key = _key(backend, items, recipe, sink_ratio)
    todo = [layer for layer in chosen if not _is_done(folder / f"layer_{layer}", key)]
    if not todo:
        return load_saes(folder, layers=chosen)
    require_sae_lens()
    reader = _Reader(lean(backend, backend.identity()), items, sequences_at_once, sink_ratio)
    at_once = buffer // sum(map(len, items))
    for start in range(0, len(todo), max(1, at_once)):
        group = todo[start : start + max(1, at_once)]
        kept = reader.all_states(group, progress=progress) if at_once else {}
        for layer in group:
            source = _States(reader, layer, recipe.seed, kept.pop(layer, None))
            with torch.random.fork_rng(), nullcontext() if progress else without_bars(*_BARS):
                torch.manual_seed(int(hash_keys(recipe.seed, layer)))
                sae = _train(backend, layer, source, recipe, buffer, key)
            _save(sae, folder / f"layer_{layer}")
    return load_saes(folder, layers=chosen)


def _train(backend: Backend, layer: int, source: _States, recipe: SaeRecipe, buffer: int, key: str) -> Any:
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    d_sae = recipe.d_sae or 8 * backend.d_model
    steps = recipe.n_states // recipe.batch_size
    lr = recipe.lr or 2e-4 * (2**14 / d_sae) ** 0.5
    note = TrainingNote(
        key=key,
        weights=backend.fingerprint,
        dtype=str(backend.dtype),
        backend=backend.name,
        centred=backend.centred,
        sink_ratio=source.reader.sink_ratio,
    )
    metadata = SAEMetadata(
        model_name=backend.model_name,
        hook_name=resid_post(layer),
        hook_head_index=None,
        prepend_bos=False,  # prompts are tokenised as they are given
        tl_l2norm=asdict(note) | asdict(recipe),
    )
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=backend.d_model,
            d_sae=d_sae,
            k=recipe.k,
            normalize_activations="expected_average_only_in",
            device=str(backend.device),
            metadata=metadata,
        )
    )
    config = SAETrainerConfig(
        total_training_samples=steps * recipe.batch_size,
        train_batch_size_samples=recipe.batch_size,
        device=str(backend.device),
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        n_batches_for_norm_estimate=min(20, steps),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(config, sae, source.batches(recipe.batch_size, buffer)).fit()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the states of sequences that are neither padding nor a sink."""

    backend: Backend
    items: Sequence[TokenSequence]
    at_once: int
    sink_ratio: float

    def all_states(self, layers: Sequence[int], *, progress: bool) -> dict[int, Float[Tensor, "states d_model"]]:
        """Of each layer, in the same order whichever are read beside it."""
        order = sorted(range(len(self.items)), key=lambda i: len(self.items[i]))
        parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        with tqdm(total=len(order), desc="read states", unit="seq", disable=not progress, delay=2) as bar:
            for group in self.groups(order):
                for layer, states in self.read(group, layers).items():
                    parts[layer] += states
                bar.update(len(group))
        return {layer: torch.cat(parts.pop(layer)) for layer in layers}

    def groups(self, order: Sequence[int]) -> list[Sequence[int]]:
        """As many as are read at once."""
        return [order[start : start + self.at_once] for start in range(0, len(order), self.at_once)]

    def read(self, group: Sequence[int], layers: Sequence[int]) -> dict[int, list[Float[Tensor, "states d_model"]]]:
        """Of these sequences."""
        return read_states(self.backend, [self.items[i] for i in group], layers, self.sink_ratio)


class _States:
    """Endless batches of one layer's states, from passes over the sequences in an order that is drawn anew for each pass."""

    def __init__(self, reader: _Reader, layer: int, seed: int, kept: Float[Tensor, "states d_model"] | None) -> None:
        self.reader, self.layer, self.kept = reader, layer, kept
        self.rng = random.Random(f"{seed}/{layer}")

    def batches(self, size: int, buffer: int) -> Iterator[Float[Tensor, "size d_model"]]:
        """Batches of mixed states; all states where they are kept, else read again in each pass."""
        from sae_lens.training.mixing_buffer import mixing_buffer

        if self.kept is None:
            yield from mixing_buffer(buffer, size, self._large_parts(buffer // 8))  # without end
            return
        while True:
            order = torch.randperm(len(self.kept), device=self.kept.device)
            order = order.repeat(-(-size // len(order)))
            for index in torch.split(order, size):
                if len(index) == size:
                    yield self.kept[index]

    def one_pass(self) -> Iterator[Float[Tensor, "states d_model"]]:
        """All states, sequences of like length together."""
        items = self.reader.items
        groups = self.reader.groups(sorted(range(len(items)), key=lambda i: (len(items[i]), self.rng.random())))
        self.rng.shuffle(groups)
        for group in groups:
            yield torch.cat(self.reader.read(group, [self.layer])[self.layer])

    def _large_parts(self, least: int) -> Iterator[Float[Tensor, "states d_model"]]:
        waiting: list[Tensor] = []
        while True:
            for states in self.one_pass():
                waiting.append(states)
                if sum(map(len, waiting)) >= least:
                    yield torch.cat(waiting)
                    waiting = []


def read_states(
    backend: Backend, items: Sequence[TokenSequence], layers: Sequence[int], sink_ratio: float
) -> dict[int, list[Float[Tensor, "states d_model"]]]:
    """`resid_post` of each sequence at these layers, without its attention sinks, in float32."""
    states: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    for batch in batches(backend, items, len(items)):
        tokens, mask = pad_left([items[i].tokens for i in batch], backend.device)
        with torch.no_grad(), ExitStack() as stack:
            streams = {layer: stack.enter_context(backend.capture_stream(layer)) for layer in layers}
            backend.forward(tokens, mask)
        for layer in layers:
            states[layer] |= {i: _without_sinks(items[i], streams[layer][0][row], sink_ratio) for row, i in enumerate(batch)}
    return {layer: [states[layer][i] for i in range(len(items))] for layer in layers}


def _without_sinks(
    item: TokenSequence, stream: Float[Tensor, "pos d_model"], sink_ratio: float
) -> Float[Tensor, "states d_model"]:
    states = stream[-len(item) :].float()
    norms = l2_norms(states)[None].cpu()
    is_sink = find_sinks(norms, sink_bounds(norms, prompt_len=item.prompt_len, ratio=sink_ratio))[0]
    return states[~is_sink.to(states.device)]


def _key(backend: Backend, items: Sequence[TokenSequence], recipe: SaeRecipe, sink_ratio: float) -> str:
    what = [
        backend.fingerprint or backend.model_name,
        str(backend.dtype),
        backend.centred,
        asdict(recipe),
        sink_ratio,
        [i.tokens for i in items],
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _is_done(place: Path, key: str) -> bool:
    if not (place / CONFIG_FILE).is_file():
        return False
    metadata = parse_sae_metadata(read_json(place / CONFIG_FILE))
    if TrainingNote.of(metadata.tl_l2norm or {}).key != key:
        raise InputError(f"{place} holds an SAE of another model, recipe or other prompts: give another folder")
    return True


def _save(sae: Any, place: Path) -> None:
    draft = place.with_name(place.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    sae.save_inference_model(draft)
    shutil.rmtree(place, ignore_errors=True)  # what an interrupted run left
    draft.replace(place)
