"""Whether two models compute the same: norms behind every block, and logits, on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_l2norm.core.errors import InputError, Unsupported
from tl_l2norm.models.backend import Backend
from tl_l2norm.models.hooks import attached

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative, on norms, between two implementations of one model."""

_PROBE = 48  # tokens: biases, scales, activations and rotations all show within these


class Pass(NamedTuple):
    """One pass over one sequence, on the CPU."""

    norms: Float[Tensor, "layer pos"]
    logits: Float[Tensor, "pos d_vocab"]


def probe_tokens(d_vocab: int, n_ctx: int | None = None) -> Int[Tensor, " pos"]:
    """Tokens drawn from the whole vocabulary, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(d_vocab, (min(_PROBE, n_ctx or _PROBE),), generator=generator)


def blocks_of(hf_model: Any) -> nn.ModuleList:
    """The blocks of a plain Hugging Face decoder.

    Raises:
        NotImplementedError: it has none that could be found.
    """
    config = hf_model.config.get_text_config()
    n_layers = next((n for name in ("num_hidden_layers", "n_layer", "num_layers") if (n := getattr(config, name, None))), None)
    for module in hf_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise Unsupported(f"no list of {n_layers} blocks in {type(hf_model).__name__}: where its stream is isn't known")


@torch.no_grad()
def plain_pass(hf_model: Any, tokens: Int[Tensor, " pos"]) -> Pass:
    """What Hugging Face itself computes. Shares nothing with our hooks."""
    norms: list[Tensor] = []

    def note(_module: Any, _args: Any, out: Any) -> None:
        norms.append((out if isinstance(out, Tensor) else out[0])[0].float().norm(dim=-1).cpu())

    handles = [block.register_forward_hook(note) for block in blocks_of(hf_model)]
    try:
        device = hf_model.get_input_embeddings().weight.device
        logits = hf_model(tokens[None].to(device), use_cache=False).logits[0].float().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return Pass(torch.stack(norms), logits)


@contextmanager
def or_refused(kind: str, architecture: str, what_to_do: str) -> Iterator[None]:
    """Turn what goes wrong inside a library that doesn't know an architecture well into a refusal.

    Args:
        kind: who runs the model, for the message: "TransformerBridge", "HookedTransformer" or "transformers".
        architecture: the model's class.
        what_to_do: the end of the message.

    Raises:
        NotImplementedError: with what went wrong.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise Unsupported(
            f"{kind} can't run this {architecture} with the installed versions ({type(error).__name__}: {error}); {what_to_do}"
        ) from error


def sound_pass(hf_model: Any, tokens: Int[Tensor, " pos"]) -> Pass:
    """`plain_pass` of a model that is about to be wrapped, refused if norms or logits are not finite.

    Raises:
        ValueError: weights or arithmetic that give NaN or infinity, with the names of the weights.
        NotImplementedError: Hugging Face itself can't run it.
    """
    with or_refused("transformers", type(hf_model).__name__, "another version of transformers may"):
        measured = plain_pass(hf_model, tokens)
    if measured.norms.isfinite().all() and not measured.logits.isnan().any():
        return measured
    broken = [name for name, weight in hf_model.named_parameters() if not weight.isfinite().all()]
    dtype = str(hf_model.dtype).removeprefix("torch.")
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"NaN or infinity in {', '.join(broken[:3])}{more}: the files are broken, or their values outside {dtype}"
        )
    raise InputError(f"{type(hf_model).__name__} itself computes NaN or infinity in {dtype}: load it in another dtype")


@torch.no_grad()
def lens_pass(backend: Backend, tokens: Int[Tensor, " pos"]) -> Pass:
    """What the same model computes through TransformerLens, at the hook points that everything here reads."""
    norms: list[Tensor] = []

    def note(stream: Tensor, hook: Any) -> None:
        norms.append(stream[0].float().norm(dim=-1).cpu())

    ids = tokens[None].to(backend.device)
    with attached([(backend.resid_post(layer), note) for layer in range(backend.n_layers)]):
        logits, _ = backend.forward(ids, torch.ones_like(ids), logits="all")
    assert logits is not None
    return Pass(torch.stack(norms), logits[0].float().cpu())


def norms_differ_by(measured: Pass, truth: Pass) -> float:
    """Largest relative difference of norms; infinite where the shapes differ."""
    if measured.norms.shape != truth.norms.shape:
        return float("inf")
    return float(((measured.norms - truth.norms).abs() / truth.norms.clamp_min(1e-6)).max())


def logits_differ_by(measured: Pass, truth: Pass) -> float:
    """Largest difference of logits over their own spread: single ones may be near zero."""
    width = min(measured.logits.shape[-1], truth.logits.shape[-1])  # TransformerLens may leave padding of the vocabulary out
    return float((measured.logits[:, :width] - truth.logits[:, :width]).abs().max() / truth.logits.std().clamp_min(1e-6))


def require_agreement(backend: Backend, truth: Pass, tokens: Int[Tensor, " pos"], what_to_do: str) -> None:
    """Refuse a TransformerLens model that computes something else than the Hugging Face model it was made from.

    Raises:
        NotImplementedError: with how far it is off, or why it doesn't run.
    """
    architecture = getattr(backend.model.cfg, "original_architecture", None) or backend.model.cfg.architecture
    kind = type(backend.model).__name__
    with or_refused(kind, architecture, what_to_do):
        measured = lens_pass(backend, tokens)
    norms, logits = norms_differ_by(measured, truth), logits_differ_by(measured, truth)
    bound = TOLERANCE.get(backend.dtype, 1e-1)
    if not (norms <= bound and logits <= 10 * bound):
        raise Unsupported(
            f"{kind} computes something else than this {architecture} does in Hugging Face: norms are off by {norms:.1%}, "
            f"logits by {logits:.1%} of their spread; {what_to_do}"
        )
