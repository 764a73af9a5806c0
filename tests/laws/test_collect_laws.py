"""What must hold of recorded norms, on every architecture and backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import TEXTS, ids, relative
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording import collect
from tl_l2norm.recording.stream import StreamRecorder
from tl_l2norm.text.sequences import pad_left


def test_norms_are_those_of_plain_hugging_face(model: Any, plain: Any) -> None:
    for text in TEXTS:
        trace = l2.collect(model, [ids(text)])[0]
        truth = oracles.hidden_norms(plain, ids(text))
        assert trace.l2_norms.dtype == torch.float32
        assert relative(trace.l2_norms.double(), truth[1:]) < 1e-4
        assert relative(trace.embed_l2_norms.double(), truth[0]) < 1e-4


def test_a_sequence_alone_is_the_same_in_a_left_padded_batch(model: Any) -> None:
    together = l2.collect(model, [ids(text) for text in TEXTS], batch_size=3)
    for text, trace in zip(TEXTS, together, strict=True):
        alone = l2.collect(model, [ids(text)])[0]
        assert trace.tokens.tolist() == alone.tokens.tolist() == ids(text)
        assert relative(trace.l2_norms, alone.l2_norms) < 1e-4
        assert relative(trace.embed_l2_norms, alone.embed_l2_norms) < 1e-4
        assert torch.equal(trace.is_sink, alone.is_sink)


def test_long_sequences_are_read_in_parts_and_nothing_changes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [ids(text) for text in TEXTS]
    whole = l2.collect(model, sequences, batch_size=3)
    assert max(map(len, sequences)) > 20
    for scores in (200, 1):  # a few positions at once, and each alone
        monkeypatch.setattr(collect, "_SCORES", scores)
        for parts, trace in zip(l2.collect(model, sequences, batch_size=3), whole, strict=True):
            assert relative(parts.l2_norms, trace.l2_norms) < 1e-4
            assert relative(parts.embed_l2_norms, trace.embed_l2_norms) < 1e-4


def test_recording_changes_no_logit(model: Any) -> None:
    backend = backend_of(model)
    tokens, mask = pad_left([ids(text) for text in TEXTS], backend.device)
    recorder = StreamRecorder(backend, range(backend.n_layers))
    with torch.no_grad():
        plain, cache = backend.forward(tokens, mask, keep_cache=True, logits="all")
        mask_on = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        next_plain, _ = backend.forward(tokens[:, -1:], mask_on, cache=cache, logits="last")
        with recorder.attached():
            recorded, cache = backend.forward(tokens, mask, keep_cache=True, logits="all")
            next_recorded, _ = backend.forward(tokens[:, -1:], mask_on, cache=cache, logits="last")
    assert torch.equal(plain, recorded)
    assert torch.equal(next_plain, next_recorded)


def test_last_logits_and_the_logit_lens_are_those_of_plain_hugging_face(model: Any, plain: Any) -> None:
    backend = backend_of(model)
    tokens, mask = pad_left([ids(TEXTS[0])], backend.device)
    with torch.no_grad(), backend.capture_stream(backend.n_layers - 1) as streams:
        last, _ = backend.forward(tokens, mask, logits="last")
        truth = plain(tokens).logits
    assert (last[:, 0] - truth[:, -1]).abs().max() < 1e-3
    with torch.no_grad():
        assert (backend.unembed(streams[0]) - truth).abs().max() < 1e-3


def test_the_logit_lens_wakes_nobodys_hooks(tiny: Any) -> None:
    backend = backend_of(tiny)
    heard: list[str] = []
    points = [m for part in (tiny.ln_final, tiny.unembed) for m in part.modules() if hasattr(m, "add_hook")]
    for point in points:
        point.add_hook(lambda tensor, hook: heard.append(hook.name))
    try:
        with torch.no_grad():
            backend.unembed(torch.randn(2, 3, backend.d_model))
            assert heard == []
            tiny(torch.tensor([ids("Hi there")]))
            assert heard
    finally:
        tiny.reset_hooks()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_block_runs_again_on_what_it_read(model: Any, fresh: bool) -> None:
    """On its own input a block that is run again gives its first output, at any rows and positions, cached or not."""
    backend = backend_of(model)
    tokens, mask = pad_left([ids(text) for text in TEXTS], backend.device)
    last, layer = tokens.shape[1] - 1, backend.n_layers // 2
    runs = backend.block_runs((layer,))

    def again(rows: list[int], columns: list[int]) -> torch.Tensor:
        run, at = runs.take(layer), (torch.tensor(rows), torch.tensor(columns))
        return run.again(run.call.stream.clone(), *at, fresh=fresh)

    with torch.no_grad(), runs.recording(), backend.capture_stream(layer) as streams:
        backend.forward(tokens, mask)
        rows, columns = [0, 0, 2, 1], [5, last, last, last - 1]
        assert relative(again(rows, columns), streams[0][rows, columns]) < 1e-3
        _, cache = backend.forward(tokens[:, :-1], mask[:, :-1], keep_cache=True)
        backend.forward(tokens[:, -1:], mask, cache=cache)
        assert relative(again([0, 2], [0, 0]), streams[2][[0, 2], 0]) < 1e-3


def test_rows_are_found_again_after_select_join_and_trim(model: Any) -> None:
    """A cache that was padded, joined, trimmed and reordered decodes as the rows alone do."""
    backend = backend_of(model)
    long, short, late = ids(TEXTS[0]), ids(TEXTS[2]), ids(TEXTS[1])

    def prefill(*rows: list[int]) -> tuple[Any, torch.Tensor]:
        tokens, mask = pad_left(rows, backend.device)
        return backend.forward(tokens, mask, keep_cache=True, logits="last")[1], mask

    def step(cache: Any, mask: torch.Tensor, token: int) -> tuple[torch.Tensor, Any, torch.Tensor]:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits, cache = backend.forward(torch.full((len(mask), 1), token), mask, cache=cache, logits="last")
        return logits[:, 0], cache, mask

    with torch.no_grad():
        alone = []
        for row in (late, short):
            cache, mask = prefill(row)
            for token in (100, 200):
                logits, cache, mask = step(cache, mask, token)
            alone.append(logits[0])
        cache, mask = prefill(long, short)
        other, other_mask = prefill(late)
        assert backend.cache_rows.can_join(cache)
        cache = backend.cache_rows.join(cache, other)
        mask = torch.cat([mask, torch.nn.functional.pad(other_mask, (mask.shape[1] - other_mask.shape[1], 0))])
        logits, cache, mask = step(cache, mask, 100)
        keep = torch.tensor([2, 1])
        cache, mask = backend.cache_rows.select(cache, keep), mask[keep]
        padding = int(mask.argmax(1).min())
        assert padding > 0
        cache, mask = backend.cache_rows.trim_left(cache, padding), mask[:, padding:]
        logits, cache, mask = step(cache, mask, 200)
    for ours, truth in zip(logits, alone, strict=True):
        assert (ours - truth).abs().max() < 1e-3


@pytest.mark.parametrize("case", [c for c in models.TINY if c.architecture in ("llama", "gpt2")], ids=str)
def test_float16_norm_of_25_000_is_right(case: models.Case) -> None:
    model = l2.load_model(models.folder(case.architecture), backend=case.backend, dtype=torch.float16, device="cpu")
    backend = backend_of(model)
    stream = torch.zeros(1, 3, backend.d_model, dtype=torch.float16)
    stream[..., 5], stream[..., 6] = 20000.0, 15000.0  # 3, 4, 5: norm 25,000; the square overflows float16

    def blow_up(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return stream.expand_as(tensor)

    point = backend.resid_post(1)
    point.add_hook(blow_up)
    try:
        trace = l2.collect(model, [[5, 6, 7]], layers=[1])[0]
    finally:
        model.reset_hooks()
    assert torch.isfinite(trace.l2_norms).all()
    assert relative(trace.l2_norms, torch.full((1, 3), 25000.0)) < 0.01
