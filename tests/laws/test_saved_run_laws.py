"""Long runs lose nothing that is finished, and what is kept is never taken for another model's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import tl_l2norm as l2
from tests import models
from tests.slow import slow_but
from tl_l2norm.models.backends import backend_of
from tl_l2norm.recording import saved
from tl_l2norm.recording.saved import Journal, ReadOptions, collected, locked
from tl_l2norm.tasks.problems import Problem

PROBLEMS = l2.make_mixture(5)
SHORT: dict[str, Any] = {"max_new_tokens": 9, "max_direct_tokens": 3, "batch_size": 2, "progress": False}


class Killed(BaseException):
    """Stands for a signal: nobody catches it."""


def table(results: Any) -> list[Any]:
    """All of a run, to the last bit."""
    return [
        (r.mode, r.problem.id, r.prompt, r.response, r.correct, r.trace.l2_norms.numpy().tobytes(), dict(r.trace.labels))
        for r in results
    ]


def killed_after(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """The process ends when this many calls have written what they had."""
    left, add = [n], Journal.add

    def adds(self: Journal, entries: Any) -> None:
        add(self, entries)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Journal, "add", adds)


@pytest.fixture
def bridge() -> Any:
    return models.use(models.Case("llama", "bridge"))


@pytest.fixture
def fresh() -> Any:
    """A model of our own to change."""
    return l2.load_model(models.folder("qwen3"), device="cpu")


@pytest.mark.parametrize("n", slow_but([2], [1, 2, 4]))
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_killed_run_goes_on_and_gives_the_same_bits(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, temperature: float
) -> None:
    whole = l2.run_modes(tiny, PROBLEMS, temperature=temperature, **SHORT)
    with monkeypatch.context() as patch:
        killed_after(patch, n)
        with pytest.raises(Killed):
            l2.run_modes(tiny, PROBLEMS, temperature=temperature, save_to=tmp_path, **SHORT)
    assert sum(len(file.read_bytes().splitlines()) for file in tmp_path.glob("*/responses.jsonl")) >= n
    assert table(l2.run_modes(tiny, PROBLEMS, temperature=temperature, save_to=tmp_path, **SHORT)) == table(whole)


def test_reading_is_gone_on_with_too(bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = l2.run_modes(bridge, PROBLEMS, **SHORT)
    with monkeypatch.context() as patch:
        calls, save = [], saved.save_traces

        def saves(*arguments: Any) -> None:
            save(*arguments)
            calls.append(1)
            if len(calls) == 2:
                raise Killed

        patch.setattr(saved, "save_traces", saves)
        with pytest.raises(Killed):
            l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("tl_l2norm.experiments.modes.generate", lambda *_, **__: pytest.fail("asked again"))
        assert table(l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)) == table(whole)
        patch.setattr(saved, "collect", lambda *_, **__: pytest.fail("read again"))
        assert table(l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)) == table(whole)


def test_more_problems_ask_only_the_new_ones(bridge: Any, tmp_path: Path) -> None:
    l2.run_modes(bridge, PROBLEMS[1:4], save_to=tmp_path, **SHORT)
    files = {file: file.read_bytes() for file in tmp_path.glob("*/responses.jsonl")}
    more = l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)
    assert all(file.read_bytes().startswith(before) for file, before in files.items())
    assert all(len(file.read_bytes().splitlines()) == len(PROBLEMS) for file in files)
    assert table(more) == table(l2.run_modes(bridge, PROBLEMS, **SHORT))


def _fine_tuned(model: Any) -> None:
    optimiser = torch.optim.SGD(model.original_model.parameters(), lr=0.5)
    model.original_model(torch.arange(5, 25)[None], labels=torch.arange(5, 25)[None]).loss.backward()
    optimiser.step()


def _without_a_head(model: Any) -> None:
    model.blocks[3].attn.o.weight.data[:, :16] = 0


def _other_template(model: Any) -> None:
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def _other_tokenizer(model: Any) -> None:
    model.tokenizer.add_tokens([" the", "What is", " number"])
    model.cfg.d_vocab = max(model.cfg.d_vocab, len(model.tokenizer))
    with torch.no_grad():
        model.original_model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)


@pytest.mark.parametrize("change", [_fine_tuned, _without_a_head, _other_template])
def test_what_another_model_of_the_same_name_said_is_not_taken(
    fresh: Any, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    before = l2.run_modes(fresh, PROBLEMS, save_to=tmp_path, **SHORT)
    change(fresh)
    after = l2.run_modes(fresh, PROBLEMS, save_to=tmp_path, **SHORT)
    assert table(after) == table(l2.run_modes(fresh, PROBLEMS, **SHORT)) != table(before)


def test_another_tokenizer_is_another_run(fresh: Any, tmp_path: Path) -> None:
    l2.run_modes(fresh, PROBLEMS[:1], modes=["direct"], save_to=tmp_path, **SHORT)
    fresh.tokenizer.backend_tokenizer.normalizer = None
    fresh.tokenizer.add_tokens(["<other>"])
    l2.run_modes(fresh, PROBLEMS[:1], modes=["direct"], save_to=tmp_path, **SHORT)
    assert len(list(tmp_path.iterdir())) == 2


def test_with_hooks_of_others_nothing_is_kept_or_taken(bridge: Any, tmp_path: Path) -> None:
    before = l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)
    kept = sorted(tmp_path.rglob("*"))
    backend_of(bridge).resid_post(1).add_hook(lambda stream, hook: stream * 0)
    try:
        with pytest.warns(UserWarning, match=r"nothing is read from or kept in .*1 hooks or SAEs"):
            hooked = l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)
    finally:
        bridge.reset_hooks()
    assert [r.response for r in hooked] != [r.response for r in before]
    assert {r.trace.provenance.foreign_hooks for r in hooked} == {1}
    assert sorted(tmp_path.rglob("*")) == kept
    assert table(l2.run_modes(bridge, PROBLEMS, save_to=tmp_path, **SHORT)) == table(before)


def test_hooks_that_act_while_decoding_alone_are_in_the_traces(bridge: Any) -> None:
    def ablate(stream: torch.Tensor, hook: Any) -> torch.Tensor | None:
        return stream * 3 if stream.shape[1] == 1 else None

    plain = l2.run_modes(bridge, PROBLEMS[:1], modes=["think"], **SHORT)[0].trace
    backend_of(bridge).resid_post(5).add_hook(ablate)
    try:
        trace = l2.run_modes(bridge, PROBLEMS[:1], modes=["think"], **SHORT)[0].trace
    finally:
        bridge.reset_hooks()
    start = trace.prompt_len
    assert torch.allclose(trace.l2_norms[5, :start], plain.l2_norms[5, :start], rtol=1e-4)
    assert trace.l2_norms[5, start] == pytest.approx(3 * float(plain.l2_norms[5, start]), rel=1e-4)


def test_broken_weights_show_before_anything_is_decoded(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_l2norm.experiments.modes.generate", lambda *_, **__: pytest.fail("decoded in spite of it"))
    fresh.original_model.get_input_embeddings().weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match="the norm is nan"):
        l2.run_modes(fresh, PROBLEMS, **SHORT)


def test_a_kept_response_is_judged_by_the_answer_of_now(bridge: Any, tmp_path: Path) -> None:
    wrong = Problem(question="What is 1 + 1?", answer="no number at all", family="own")
    first = l2.run_modes(bridge, [wrong], modes=["think"], save_to=tmp_path, **SHORT)[0]
    right = Problem(question=wrong.question, answer="it", family="own", verify=lambda _: True)
    again = l2.run_modes(bridge, [right], modes=["think"], save_to=tmp_path, **SHORT)[0]
    assert (first.correct, again.correct, again.response) == (False, True, first.response)


@pytest.mark.parametrize("n", slow_but([3], [3, 11]))
def test_a_killed_causal_test_goes_on_and_gives_the_same_table(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    traces = [r.trace for r in l2.run_modes(bridge, PROBLEMS, modes=["think"], **SHORT)]
    options: dict[str, Any] = {"quantiles": (0.6,), "max_new_tokens": 9, "batch_size": 2, "progress": False}
    whole = l2.experiments.suppress_and_ask(bridge, PROBLEMS, traces, **options)
    assert whole["events"].sum() > 0 and (whole[whole["arm"] == "random"]["events"].sum() > 0)
    with monkeypatch.context() as patch:
        killed_after(patch, n)
        with pytest.raises(Killed):
            l2.experiments.suppress_and_ask(bridge, PROBLEMS, traces, save_to=tmp_path, **options)
    pd.testing.assert_frame_equal(l2.experiments.suppress_and_ask(bridge, PROBLEMS, traces, save_to=tmp_path, **options), whole)
    monkeypatch.setattr("tl_l2norm.experiments.suppression.generate", lambda *_, **__: pytest.fail("asked again"))
    pd.testing.assert_frame_equal(l2.experiments.suppress_and_ask(bridge, PROBLEMS, traces, save_to=tmp_path, **options), whole)


def test_kept_traces_are_those_of_collect(bridge: Any, tmp_path: Path) -> None:
    texts = ["one two three", "four", "five six", "seven eight nine ten"]
    labels = [{"number": i} for i in range(4)]
    plain = l2.collect(bridge, texts, labels=labels, batch_size=2, progress=False)
    for _ in range(2):
        again = collected(tmp_path, bridge, texts, labels=labels, reading=ReadOptions(batch_size=2, progress=False))
        for a, b in zip(again, plain, strict=True):
            assert torch.equal(a.l2_norms, b.l2_norms) and a.labels == b.labels and a.provenance == b.provenance
    assert not (tmp_path / "parts").exists()


def test_generate_hands_over_each_response_once_when_it_ends(bridge: Any) -> None:
    seen: list[Any] = []
    options: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True, "batch_size": 2, "progress": False}
    out = l2.generate(
        bridge, ["one", "two", "three"], interventions=[l2.Suppression({2: 0.0})], on_finish=seen.append, **options
    )
    assert len(seen) == 2, "two end together, then the third"
    assert {id(c) for part in seen for c in part} == {id(c) for c in out}
    assert all(part.log is out.log for part in seen)
    assert not any(c.trace.l2_norms.is_inference() for c in out)


# The journal


ENTRIES = {"a": {"tokens": [1, 2], "text": "é \n {"}, "b": {"tokens": []}, "c": {"text": "x" * 50}}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    file = tmp_path / "responses.jsonl"
    for key, value in ENTRIES.items():
        Journal(file).add({key: value})
    return file


def test_a_journal_that_ends_anywhere_keeps_its_whole_lines(journal: Path) -> None:
    content = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 0x0A]
    for size in range(len(content) + 1):
        journal.write_bytes(content[:size])
        whole = sum(size >= end - 1 for end in ends)  # a line that lacks its end alone is whole
        reopened = Journal(journal)
        assert list(reopened.entries.items()) == list(ENTRIES.items())[:whole]
        reopened.add({"new": {"n": size}})
        assert Journal(journal).entries == dict(list(ENTRIES.items())[:whole]) | {"new": {"n": size}}


@pytest.mark.parametrize("where", [3, 12, 40])
def test_a_damaged_line_is_named_with_what_to_do(journal: Path, where: int) -> None:
    content = bytearray(journal.read_bytes())
    content[where] ^= 1
    journal.write_bytes(content)
    with pytest.raises(ValueError, match=r"responses\.jsonl is damaged at line 1: delete that line .* or the folder"):
        Journal(journal)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_an_editor_adds_is_read(journal: Path, mark: bytes, end: bytes) -> None:
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(mark + b"\r\n\r\n".join(lines) + end)
    assert Journal(journal).entries == ENTRIES
    Journal(journal).add({"new": {"n": 1}})
    assert Journal(journal).entries == ENTRIES | {"new": {"n": 1}}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no line of ours", 1),
        (b"no line of ours\n", 1),
        (b"\x00" * 40, 1),
        ("00000000 {}\n".encode("utf-16"), 1),
        (b"%swrong\n", 4),
        (b"%s\nwrong", 5),
        (b'%s00000000 {"key": "d", "value": {}}\n', 4),
        (b'%s00000000 {"key": "d", "value": {}}', 4),
    ],
)
def test_damage_that_no_killed_process_leaves_is_named_and_stays(journal: Path, content: bytes, line: int) -> None:
    content = content.replace(b"%s", journal.read_bytes())
    journal.write_bytes(content)
    with pytest.raises(ValueError, match=rf"responses\.jsonl is damaged at line {line}: delete that line"):
        Journal(journal)
    assert journal.read_bytes() == content


def _cut(folder: Path) -> None:
    file = folder / "traces.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _without_tensors(folder: Path) -> None:
    (folder / "traces.safetensors").unlink()


def _not_json(folder: Path) -> None:
    (folder / "traces.json").write_text("{")


def _without_entries(folder: Path) -> None:
    (folder / "traces.json").write_text('{"format": "tl_l2norm.traces", "version": 2}')


@pytest.mark.parametrize("damage", [_cut, _without_tensors, _not_json, _without_entries])
def test_damaged_traces_are_named_and_measured_again(
    bridge: Any, tmp_path: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"modes": ["think"], "save_to": tmp_path, **SHORT}
    whole = l2.run_modes(bridge, PROBLEMS[:2], **options)
    damage(next(tmp_path.iterdir()))
    with pytest.raises(ValueError, match=r"traces\.(safetensors|json)"):
        l2.load_traces(next(tmp_path.iterdir()))
    monkeypatch.setattr("tl_l2norm.experiments.modes.generate", lambda *_, **__: pytest.fail("asked again"))
    with pytest.warns(UserWarning, match=r"norms are measured again, the responses are kept: .*traces"):
        assert table(l2.run_modes(bridge, PROBLEMS[:2], **options)) == table(whole)
    assert table(l2.run_modes(bridge, PROBLEMS[:2], **options)) == table(whole), "and whole again"


# The folder


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(bridge: Any, tmp_path: Path) -> None:
    l2.run_modes(bridge, PROBLEMS[:1], modes=["think"], save_to=tmp_path, **SHORT)
    place = next(tmp_path.iterdir())
    code = f"""
import pathlib, sys, time
from tl_l2norm.recording.saved import locked
with locked(pathlib.Path({str(place)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "locked\n"
            with pytest.raises(ValueError, match="another process works in .*give another folder"):
                l2.run_modes(bridge, PROBLEMS[:1], modes=["think"], save_to=tmp_path, **SHORT)
        finally:
            other.kill()
    l2.run_modes(bridge, PROBLEMS[:1], modes=["think"], save_to=tmp_path, **SHORT)


def test_a_folder_that_cant_be_written_to_is_refused_before_anything_is_asked(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tl_l2norm.experiments.modes.generate", lambda *_, **__: pytest.fail("asked in spite of it"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't keep anything in .*give another folder"):
        l2.run_modes(bridge, PROBLEMS, save_to=tmp_path / "file" / "kept", **SHORT)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        l2.run_modes(bridge, PROBLEMS, save_to=tmp_path / "kept", **SHORT)
    assert not list(tmp_path.glob("kept/*/.probe*"))


def test_the_lock_is_gone_when_the_context_is_left(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
