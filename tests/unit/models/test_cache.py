from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers.cache_utils import DynamicCache, StaticCache

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.cache import cache_renamings, check_grown, handed_over, positions_held

KEYS = torch.zeros(2, 1, 3, 4)


def llama(**options: Any) -> Any:
    return transformers.LlamaConfig(num_hidden_layers=2, num_key_value_heads=1, head_dim=4, **options)


def test_positions_are_counted_where_a_cache_counts_them() -> None:
    cache = DynamicCache(config=llama())
    assert positions_held(None) == positions_held(cache) == 0
    cache.update(KEYS, KEYS, 0)
    assert positions_held(cache) == 3


def test_a_sliding_layer_counts_what_it_has_let_go() -> None:
    cache = DynamicCache(config=transformers.MistralConfig(num_hidden_layers=1, sliding_window=3))
    for _ in range(3):
        cache.update(KEYS, KEYS, 0)
    assert cache.layers[0].keys.shape[2] == 2
    assert positions_held(cache) == 9


def test_what_counts_none_is_never_asked_for_a_number_on_a_device() -> None:
    static = StaticCache(config=llama(), max_cache_len=8)
    static.update(KEYS, KEYS, 0)
    recurrent = DynamicCache(config=transformers.MambaConfig(num_hidden_layers=2))
    assert positions_held(static) is positions_held(recurrent) is positions_held(object()) is None
    for cache in (static, recurrent, object()):
        check_grown(None, cache, 3)


@pytest.mark.parametrize("before", [0, 3, 5])
def test_growth_by_anything_else_than_what_was_read_is_refused(before: int) -> None:
    cache = DynamicCache(config=llama())
    cache.update(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4), 0)
    for n_pos in (1, 2, 5):
        if before + n_pos == 5:
            check_grown(before, cache, n_pos)
        else:
            with pytest.raises(Unsupported, match=rf"from {before} to 5 positions when the model read {n_pos}.*known"):
                check_grown(before, cache, n_pos)
    with pytest.raises(Unsupported, match="returned no KV cache"):
        check_grown(before, None, 1)


class Layer(nn.Module):
    """Takes its cache under the new name."""

    def forward(self, hidden: Any, cache: Any = None) -> Any:
        return cache


class Old(nn.Module):
    def forward(self, hidden: Any, past_key_values: Any = None) -> Any:
        return past_key_values


class Mixer(nn.Module):
    """A component as the bridge has it: looks for an old name and hands on what it was given."""

    def __init__(self, original: nn.Module, heard: list[dict[str, Any]]) -> None:
        super().__init__()
        self.original_component, self.heard = original, heard

    def forward(self, hidden: Any, **kwargs: Any) -> Any:
        self.heard.append(kwargs)
        return self.original_component(hidden, **kwargs)


class Attention(Mixer, AttentionBridge):
    config = None

    def __init__(self, original: nn.Module, heard: list[dict[str, Any]]) -> None:
        nn.Module.__init__(self)
        self.heard = heard
        self.set_original_component(original)


@pytest.mark.parametrize(("kind", "name"), [(Attention, "past_key_values"), (Mixer, "cache_params")])
def test_a_component_finds_the_cache_under_its_name_and_the_layer_under_the_new_one(kind: Any, name: str) -> None:
    heard: list[dict[str, Any]] = []
    component = kind(Layer(), heard)
    block = nn.ModuleList([component])
    bridge = SimpleNamespace(original_model=Layer(), blocks=nn.ModuleList([block]))
    renamings = cache_renamings(bridge)
    with handed_over(renamings):
        assert component("hidden", cache="ours") == "ours"
        assert bridge.original_model("hidden", past_key_values="ours") == "ours"
    assert heard == [{name: "ours"}]
    component("hidden", cache="ours")
    assert heard[1:] == [{"cache": "ours"}], "outside of the context nothing is renamed"


def test_where_both_agree_on_a_name_nothing_is_put_on() -> None:
    blocks = nn.ModuleList([nn.ModuleList([Attention(Old(), [])])])
    assert cache_renamings(SimpleNamespace(original_model=Old(), blocks=blocks)) == []
