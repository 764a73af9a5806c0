import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tl_l2norm as l2
from tests.traces import trace_of
from tl_l2norm.core.trace import require_comparable


def test_shapes_are_checked_with_both_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"Trace.str_tokens has shape \(1,\), expected \(4,\)"):
        trace_of([[1.0, 2, 3, 4]], str_tokens=("a",))
    with pytest.raises(ValueError, match="prompt_len is 0"):
        trace_of([[1.0, 2]], prompt_len=0)
    with pytest.raises(ValueError, match="segments"):
        trace_of([[1.0, 2]], segments=("prompt", "musing"))


def test_layers_are_found_by_their_number() -> None:
    trace = trace_of([[1.0, 2], [3, 4], [5, 6]], layers=(4, 5, 9))
    assert trace.at(9).tolist() == trace.at(-1).tolist() == [5, 6]
    assert trace.select([4, 9]).l2_norms.tolist() == [[1, 2], [5, 6]]
    assert trace.select(5).l2_norms.tolist() == [[3, 4]]
    assert trace.select("late").layers == trace.late_layers == (9,), "of the model, which has ten"
    with pytest.raises(ValueError, match="layer 6 was not recorded: this trace has layers 4-5, 9"):
        trace.at(6)


def test_masks() -> None:
    trace = trace_of([[1.0, 2, 3, 4]], segments=("prompt", "think", "answer", "answer"), prompt_len=1)
    assert trace.in_segment("think", "answer").tolist() == [False, True, True, True]
    assert trace.is_response.tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="unknown segments"):
        trace.in_segment("thinking")


def test_the_frame_has_one_row_per_layer_and_position() -> None:
    traces = [trace_of([[1.0, 2, 3], [4, 5, 6]], prompt_len=2).with_labels(mode="think"), trace_of([[7.0, 8], [9, 10]])]
    frame = l2.to_frame(traces)
    assert len(frame) == 6 + 4
    entry = frame[(frame.sequence == 0) & (frame.layer == 1) & (frame.position == 2)].iloc[0]
    assert (entry.l2_norm, entry.token, entry["mode"], entry.is_prompt) == (6.0, "t2", "think", False)
    wide = l2.to_frame(traces, include_embedding=True)
    assert len(wide) == 9 + 6
    assert set(wide.layer) == {"embed", 0, 1}


def test_traces_of_another_model_or_dtype_are_not_mixed() -> None:
    require_comparable([trace_of([[1.0]]), trace_of([[2.0]])])
    for other in ({"model": "other"}, {"dtype": "bfloat16"}, {"centred": True}):
        with pytest.raises(ValueError, match="not comparable"):
            require_comparable([trace_of([[1.0]]), trace_of([[2.0]], provenance=other)])
    with pytest.raises(ValueError, match="use trace.select"):
        require_comparable([trace_of([[1.0]]), trace_of([[2.0]], layers=(3,))])


def test_round_trip(tmp_path: Path) -> None:
    traces = [
        trace_of([[1.0, 2, 3]], str_tokens=("a", "<think>", "\n🤗"), prompt_len=1).with_labels(mode="think", level=2),
        trace_of([[4.0, 5], [6, 7]], layers=(3, 8)),
    ]
    loaded = l2.load_traces(l2.save_traces(tmp_path / "deep" / "run", traces))
    for old, new in zip(traces, loaded, strict=True):
        for name in ("tokens", "l2_norms", "embed_l2_norms", "is_sink", "sink_bounds"):
            assert torch.equal(getattr(old, name), getattr(new, name))
        for name in ("str_tokens", "segments", "prompt_len", "layers", "labels", "provenance"):
            assert getattr(old, name) == getattr(new, name)
    assert len(l2.load_traces(l2.save_traces(tmp_path / "deep" / "run", traces[:1]))) == 1, "saving again replaces"


def test_a_tilde_is_the_home_folder_and_no_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert l2.save_traces("~/run", [trace_of([[1.0, 2]])]) == tmp_path / "run"
    assert len(l2.load_traces("~/run")) == 1 and not (tmp_path / "~").exists()
    with pytest.raises(ValueError, match="is empty: give a path"):
        l2.load_traces("")


def damage(folder: Path, what: str) -> None:
    tensors, index = folder / "traces.safetensors", folder / "traces.json"
    match what:
        case "cut off":
            tensors.write_bytes(tensors.read_bytes()[:-7])
        case "no index":
            index.unlink()
        case "not JSON":
            index.write_text(index.read_text()[:50])
        case "foreign":
            index.write_text(json.dumps({"hello": 1}))
        case "newer":
            index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 99}))
        case "a trace lost its tokens' text":
            content = json.loads(index.read_text())
            del content["traces"][0]["str_tokens"]
            index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut off", "doesn't match the checksum"),
        ("no index", "holds no traces.json"),
        ("not JSON", "is damaged"),
        ("foreign", "was not written by tl_l2norm.save_traces"),
        ("newer", "format version 99"),
        ("a trace lost its tokens' text", "str_tokens"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path: Path, what: str, says: str) -> None:
    l2.save_traces(tmp_path, [trace_of([[1.0, 2]])])
    damage(tmp_path, what)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        l2.load_traces(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of traces"):
        l2.load_traces(tmp_path / "nowhere")


def test_a_table_says_which_model_each_row_is_of() -> None:
    names = {"a": "1-1", "b": "2-2", "c": "2-3"}
    traces = [trace_of([[1.0, 2.0]], provenance={"model": name, "fingerprint": own}) for name, own in names.items()]
    frame = l2.to_frame(traces)
    assert dict(zip(frame["model"], frame["weights"], strict=True)) == names
    assert list(frame.groupby("weights").size()) == [2, 2, 2]


@pytest.mark.parametrize("name", ["l2_norm", "position", "model"])
def test_a_label_called_like_a_column_is_refused_and_overwrites_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=rf"labels can't be called \['{name}'\]: the table has columns of these names"):
        l2.to_frame(trace_of([[1.0, 2.0]]).with_labels(**{name: 7}))


def test_an_engine_with_other_options_is_not_comparable_and_files_keep_them(tmp_path: Path) -> None:
    plain = trace_of([[1.0, 2]])
    low = dataclasses.replace(plain, provenance=dataclasses.replace(plain.provenance, options={"kv_cache_dtype": "fp8"}))
    assert plain.provenance.same_model(low.provenance) and not plain.provenance.comparable(low.provenance)
    assert "kv_cache_dtype=fp8" in low.provenance.describe()
    with pytest.raises(ValueError, match="an engine with other options"):
        require_comparable([plain, low])
    assert l2.load_traces(l2.save_traces(tmp_path, low))[0].provenance == low.provenance
