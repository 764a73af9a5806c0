"""The language model inside a multimodal one."""

from __future__ import annotations

from typing import Any

import torch

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.agreement import TOLERANCE, logits_differ_by, norms_differ_by, plain_pass, probe_tokens


def text_part(hf_model: Any) -> Any:
    """The causal language model that a multimodal model runs on text, with the same weights; any other model as it is.

    TransformerLens wraps the whole and then wants an image processor, for which it installs packages at run time.

    Raises:
        NotImplementedError: a text model that has no causal class of its own, or one that computes something else alone.
    """
    config = hf_model.config.get_text_config()
    if config is hf_model.config:
        return hf_model
    text = _alone(hf_model, config)
    tokens = probe_tokens(config.vocab_size, 16)
    whole, alone = plain_pass(hf_model, tokens), plain_pass(text, tokens)
    bound = TOLERANCE.get(text.dtype, 1e-1)
    if not (norms_differ_by(alone, whole) <= bound and logits_differ_by(alone, whole) <= bound):
        raise Unsupported(f"the text model of {type(hf_model).__name__} computes something else alone than inside it")
    return text


def _alone(hf_model: Any, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    decoder = hf_model.get_decoder()
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise Unsupported(
            f"{type(hf_model).__name__}: its text model ({type(decoder).__name__}) is no causal model of its own in "
            "transformers, so text alone can't be run; use a text-only checkpoint"
        )
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    if type(getattr(text, text.base_model_prefix, None)) is not type(decoder):
        raise Unsupported(f"{type(hf_model).__name__}: {type(decoder).__name__} isn't what {type(text).__name__} is made of")
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(hf_model.get_output_embeddings())
    text.generation_config = hf_model.generation_config
    text.config._name_or_path = hf_model.config._name_or_path
    return text.eval()
