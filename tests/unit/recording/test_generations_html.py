"""The table of responses in a notebook: small, right, and deaf to what the responses say."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
import xml.etree.ElementTree as ET
from typing import Any

import torch

import tl_l2norm as l2
from tests.builders import make_trace
from tl_l2norm.recording.completions import Completion, Generations
from tl_l2norm.text.inert import inert

HOSTILE = ("<script>alert(1)</script>", "\x1b[2J", "a\u202eb", "&lt;b&gt;", "\ud800", '" onclick="x', "]]>\n")


def completion(texts: tuple[str, ...], norms: Any, **fields: Any) -> Completion:
    trace = make_trace(["<b>Q", "?\n", *texts], norms=norms.tolist(), prompt_len=2)
    given: dict[str, Any] = {
        "prompt": "<b>Q?\n",
        "text": "".join(texts),
        "answer": "",
        "prompt_tokens": (1, 2),
        "tokens": (5,) * (len(texts) + 1),
        "finish_reason": "stop",
        "prompt_index": 0,
        "sample": 0,
        "seed": 0,
        "logprobs": None,
        "self_certainty": None,
        "trace": trace,
    }
    return Completion(**(given | fields))


def table(out: Generations) -> list[list[ET.Element]]:
    """Cells of the rows, read by a parser that takes nothing that isn't well-formed."""
    root = ET.fromstring(f"<div>{out._repr_html_()}</div>")
    return [list(row) for row in root.iter("tr")][1:]


def test_a_row_has_prompt_text_end_tokens_and_the_mean_late_norm() -> None:
    norms = torch.ones(8, 5)
    norms[6:, 2:] = torch.tensor([[10.0, 20.0, 60.0], [30.0, 40.0, 80.0]])  # the last quarter of eight layers
    own = completion(("one ", "two ", "three"), norms)
    (cells,) = table(Generations((own,)))
    assert ["".join(cell.itertext()) for cell in cells] == ["<b>Q?↵", "one two three", "stop", "4", "40"]
    strengths = [float(s) for s in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", Generations((own,))._repr_html_())]
    assert strengths == sorted(strengths) and strengths[-1] == 0.5  # 20, 30, 70 over the prompt's 1
    plain = dataclasses.replace(own, trace=None)
    assert ["".join(cell.itertext()) for cell in table(Generations((plain,)))[0]][1:] == ["one two three", "stop", "4", "–"]


def test_hostile_text_is_text() -> None:
    norms = torch.rand(8, 2 + len(HOSTILE))
    own = completion(HOSTILE, norms)
    for out in (own, dataclasses.replace(own, trace=None, prompt="".join(HOSTILE))):
        (cells,) = table(Generations((out,)))
        text = "".join(cells[1].itertext())
        assert text == "".join(map(inert, HOSTILE)) and "<script>alert(1)</script>␛[2J" in text
        assert not any(element.tag not in ("td", "span") for cell in cells for element in cell.iter())
        shown = "".join("".join(cell.itertext()) for cell in cells)
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)


def test_a_large_run_is_small() -> None:
    own = completion(("word ",) * 5000, torch.rand(8, 5002))
    out = Generations((own,) * 300)
    assert len(table(out)) == 12 and len(out._repr_html_()) < 120_000 and "and 288 more" in out._repr_html_()
    assert repr(out) == "Generations(300 responses)"
    empty = Generations(())
    assert table(empty) == [] and l2.recording.Generations is Generations
