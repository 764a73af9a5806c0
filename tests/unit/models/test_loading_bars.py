"""Bars while a model is loaded."""

from __future__ import annotations

import pytest
import transformers

import tl_l2norm as l2


@pytest.mark.parametrize("progress", [True, False])
def test_they_are_shown_where_they_are_wanted(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    transformers.utils.logging.enable_progress_bar()  # whatever ran before
    l2.load_model("tiny-reasoner", progress=progress)
    assert ("Loading weights" in capsys.readouterr().err) is progress
