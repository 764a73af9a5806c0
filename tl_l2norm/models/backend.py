"""The one seam between `HookedTransformer` and `TransformerBridge`."""

from __future__ import annotations

import inspect
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from tl_l2norm.core.errors import InputError, InputTypeError, Unsupported
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.layers import resid_post, unknown_name
from tl_l2norm.core.protocols import Tokenizer
from tl_l2norm.models.block_calls import BlockRuns
from tl_l2norm.models.cache import Renamings, cache_renamings, check_grown, handed_over, longrope_boundary, positions_held
from tl_l2norm.models.final_norm import FinalNorm, read_final_norm
from tl_l2norm.models.fingerprint import model_fingerprint, template_fingerprint, tokenizer_fingerprint
from tl_l2norm.models.hooks import attached, foreign_hooks, muted
from tl_l2norm.text.turn_ends import turn_ends

Cache = Any
"""A backend's own KV cache; handle it through the backend alone."""

LogitsAt = Literal["none", "last", "all"]


class Backend(ABC):
    """A model and the few things that the two kinds of model do differently. Made by `backend_of`."""

    name: ClassVar[str]

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.cfg.d_model)

    @property
    def d_vocab(self) -> int:
        """Number of tokens that it tells apart."""
        return int(self.model.cfg.d_vocab)

    @property
    def n_ctx(self) -> int:
        """Longest sequence that the model takes."""
        return int(self.model.cfg.n_ctx)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self.model.tokenizer  # type: ignore[no-any-return]

    @property
    def model_name(self) -> str:
        """What TransformerLens calls the model."""
        return str(self.model.cfg.model_name)

    @cached_property
    def fingerprint(self) -> str:
        """Of weights and configuration as they are when this is first asked for, see `tl_l2norm.models.fingerprint`."""
        return model_fingerprint(self._weights, self.model.blocks, self._config)

    def identity(self) -> Identity:
        """Who the model is now. To be asked before a run attaches hooks of its own."""
        return Identity(
            weights=self.fingerprint,
            tokenizer=tokenizer_fingerprint(self.tokenizer),
            chat_template=template_fingerprint(self.tokenizer),
            foreign_hooks=self.foreign_hooks(),
        )

    def foreign_hooks(self) -> int:
        """How many hooks are on the model. To be asked before a run attaches hooks of its own."""
        return foreign_hooks(self.model, self._weights)

    @property
    @abstractmethod
    def _weights(self) -> nn.Module:
        """The module that holds them all."""

    @property
    @abstractmethod
    def _config(self) -> Mapping[str, Any]:
        """What its arithmetic was made from."""

    @cached_property
    def _embedding(self) -> Tensor:
        embedding: Tensor = next(self.model.embed.parameters())
        return embedding

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and so of the stream."""
        return self._embedding.dtype

    @property
    def centred(self) -> bool:
        """Whether weights that write to the stream were centred (`center_writing_weights`): rows of W_E then have mean 0."""
        rows = self._embedding.detach()[:256].float()
        return bool(rows.mean(-1).abs().max() < 1e-3 * rows.std())

    def resid_post(self, layer: int) -> HookPoint:
        """The hook point on the residual stream after block `layer`."""
        return self._point(self.model.blocks[layer], self._RESID_POST, resid_post(layer))

    def resid_mid(self, layer: int) -> HookPoint:
        """The hook point on the residual stream between attention and MLP of block `layer`.

        Raises:
            ValueError: a block in which both read the same stream has none.
        """
        name = f"blocks.{layer}.hook_resid_mid"
        point = getattr(self.model.blocks[layer], "hook_resid_mid", None)
        if point is None:
            raise InputError(f"{name}: attention and MLP of this model read the same stream, there is none between them")
        return self._point({name: point}, name, name)

    def attention_pattern(self, layer: int) -> HookPoint:
        """The hook point on the attention weights of block `layer`, behind the softmax: [batch, head, query, key].

        Raises:
            ValueError: a block without attention, or one that doesn't show its pattern.
        """
        name = f"blocks.{layer}.attn.hook_pattern"
        point = getattr(getattr(self.model.blocks[layer], "attn", None), "hook_pattern", None)
        if point is None:
            raise InputError(f"{name}: this block has no attention pattern to hook; leave that layer or attention metrics out")
        return self._point({name: point}, name, name)

    @abstractmethod
    def token_embeddings(self) -> HookPoint:
        """The hook point on the tokens' embeddings, before any block runs."""

    def embed_out(self) -> HookPoint:
        """The hook point on the embedding output: what block 0 reads, positions included where the model adds them."""
        return self._point(self.model.blocks[0], self._RESID_PRE, "blocks.0.hook_resid_pre")

    def hook_point(self, name: str) -> HookPoint:
        """A hook point by any name that the model knows.

        Raises:
            ValueError: no such name; the message has the closest ones. (`bridge.hooks` would ignore it silently.)
        """
        known = self.model.hook_dict
        if name in known:
            return self._point(known, name, name)
        parts = name.split(".")
        layer = int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else -1
        if 0 <= layer < self.n_layers and name == resid_post(layer):
            return self.resid_post(layer)  # a bridge that wraps an SAE knows no aliases
        raise InputError(unknown_name(name, {*known, *map(resid_post, range(self.n_layers))}))

    _RESID_PRE: ClassVar[str]
    _RESID_POST: ClassVar[str]

    @staticmethod
    def _point(owner: Any, attribute: str, name: str) -> HookPoint:
        point = owner[attribute] if isinstance(owner, Mapping) else getattr(owner, attribute)
        if not isinstance(point, HookPoint):
            raise InputTypeError(
                f"{name} is a {type(point).__name__}, not a HookPoint: an SAE is attached there; call model.reset_saes() first"
            )
        return point

    @abstractmethod
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch total"],
        *,
        cache: Cache | None = None,
        keep_cache: bool = False,
        logits: LogitsAt = "none",
    ) -> tuple[Float[Tensor, "batch kept d_vocab"] | None, Cache | None]:
        """One pass over left-padded tokens.

        Args:
            tokens: the new tokens.
            mask: 1 for real tokens, 0 for padding, over the cached positions and the new ones.
            cache: of the positions before; it is updated in place.
            keep_cache: whether to start a cache where none is given.
            logits: for no position, the last one, or all.

        Returns:
            The logits asked for (kept = 1 or pos) and the cache.

        Raises:
            NotImplementedError: the cache didn't grow by what was read.
        """

    @abstractmethod
    def unembed(self, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        """Final norm and unembedding (logit lens), without waking anybody's hooks."""

    def final_norm(self) -> FinalNorm:
        """The norm between the last block and the unembedding, read without waking anybody's hooks.

        Raises:
            NotImplementedError: it is neither RMSNorm nor LayerNorm.
        """
        with self._muted_head():
            return read_final_norm(getattr(self.model, "ln_final", None), self.d_model, self.model.W_U.device)

    @property
    def logit_cap(self) -> float | None:
        """The soft cap `cap * tanh(logits / cap)`, where the model has one."""
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap is not None and cap > 0 else None  # -1: switched off

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _muted_head(self) -> AbstractContextManager[None]:
        return muted(*(module for name in ("ln_final", "unembed") if (module := getattr(self.model, name, None))))

    @abstractmethod
    def select_rows(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        """The cache of these rows of the batch, in this order; a row may be taken several times. The old one is used up."""

    @abstractmethod
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        """The cache without its first positions, which are padding in every row. The old one is used up."""

    @abstractmethod
    def can_select(self, cache: Cache) -> bool:
        """Whether `select_rows` knows this kind of cache."""

    @abstractmethod
    def can_join(self, cache: Cache) -> bool:
        """Whether `join_rows` and `trim_left` know this kind of cache: it holds keys and values alone."""

    @abstractmethod
    def join_rows(self, first: Cache, second: Cache) -> Cache:
        """One cache with the rows of both, the shorter padded on the left (masked by the caller). Both are used up."""

    def eos_token_ids(self) -> frozenset[int]:
        """Tokens at which the model says that it is done: of its generation config, its tokenizer and its chat template."""
        return turn_ends(self.tokenizer, _ids(getattr(self._generates, "eos_token_id", None)))

    @property
    @abstractmethod
    def _generates(self) -> Any:
        """The model's generation config, if it has one."""

    def block_runs(self, layers: tuple[int, ...]) -> BlockRuns:
        """What it takes to run these blocks again after a pass."""
        if getattr(self.model.cfg, "positional_embedding_type", None) == "shortformer":
            raise Unsupported("shortformer position embeddings enter inside the block: it can't be run again")
        return BlockRuns({layer: self.model.blocks[layer] for layer in layers})

    @property
    def cache_renamings(self) -> Renamings:
        """What `forward` puts on the model for its blocks to find their cache; somebody else's pass goes without."""
        return ()

    @property
    def decodes_without_us(self) -> bool:
        """Whether the model's own `generate` sees its cache."""
        return True

    @property
    def longrope_boundary(self) -> int | None:
        """Longest sequence read with LongRoPE's short factors; a longer one is read with the long ones at every position."""
        return None

    @contextmanager
    def capture_stream(self, layer: int) -> Iterator[list[Float[Tensor, "batch pos d_model"]]]:
        """Yield a list that gets the whole `resid_post` of one layer at each forward pass."""
        streams: list[Tensor] = []

        def capture(stream: Tensor, hook: Any) -> None:
            streams.append(stream.detach().clone())

        with attached([(self.resid_post(layer), capture)]):
            yield streams


class HookedBackend(Backend):
    """`transformer_lens.HookedTransformer` (TransformerLens 3)."""

    name = "hooked"
    _RESID_PRE, _RESID_POST = "hook_resid_pre", "hook_resid_post"

    @property
    @override
    def _weights(self) -> nn.Module:
        return self.model  # type: ignore[no-any-return]

    @property
    @override
    def _config(self) -> Mapping[str, Any]:
        return self.model.cfg.to_dict()  # type: ignore[no-any-return]

    @override
    def token_embeddings(self) -> HookPoint:
        return self._point(self.model, "hook_embed", "hook_embed")

    @override
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch total"],
        *,
        cache: Cache | None = None,
        keep_cache: bool = False,
        logits: LogitsAt = "none",
    ) -> tuple[Float[Tensor, "batch kept d_vocab"] | None, Cache | None]:
        if cache is None and keep_cache:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            cache = TransformerLensKeyValueCache.init_cache(self.model.cfg, self.model.cfg.device, len(tokens))
        # The mask is ours, never inferred from ids: where pad and eos are one token TransformerLens masks a real eos.
        call = {"attention_mask": mask[:, -tokens.shape[1] :], "past_kv_cache": cache, "padding_side": "left"}
        before = positions_held(cache)
        out = self.model(tokens, stop_at_layer=None if logits == "all" else self.n_layers, **call)
        if cache is not None:
            check_grown(before, cache, tokens.shape[1])
        if logits == "all":
            return out, cache
        return (self._head(out[:, -1:]) if logits == "last" else None), cache

    def _head(self, stream: Tensor) -> Tensor:
        if self.model.cfg.normalization_type is not None:
            stream = self.model.ln_final(stream)
        return self._capped(self._unembed(stream))

    def _unembed(self, stream: Tensor) -> Tensor:
        """The unembedding; where nobody listens, without the transposed copy of W_U that TransformerLens makes at each call."""
        unembed = self.model.unembed
        heard = any(isinstance(m, HookPoint) and m._forward_hooks for m in unembed.modules())
        if heard or not isinstance(unembed.W_U, nn.Parameter):
            return unembed(stream)  # type: ignore[no-any-return]
        return nn.functional.linear(stream, unembed.W_U.T, unembed.b_U)

    @override
    def unembed(self, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        with self._muted_head():
            return self._head(stream.reshape(1, -1, stream.shape[-1])).reshape(*stream.shape[:-1], -1)

    @override
    def select_rows(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        for entry in cache.entries:
            entry.past_keys = entry.past_keys[rows.to(entry.past_keys.device)]
            entry.past_values = entry.past_values[rows.to(entry.past_values.device)]
        cache.previous_attention_mask = cache.previous_attention_mask[rows.to(cache.previous_attention_mask.device)]
        return cache

    @override
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        for entry in cache.entries:
            entry.past_keys, entry.past_values = entry.past_keys[:, columns:], entry.past_values[:, columns:]
        cache.previous_attention_mask = cache.previous_attention_mask[:, columns:]
        return cache

    @override
    def can_select(self, cache: Cache) -> bool:
        return True

    @override
    def can_join(self, cache: Cache) -> bool:
        return True

    @override
    def join_rows(self, first: Cache, second: Cache) -> Cache:
        for mine, other in zip(first.entries, second.entries, strict=True):
            mine.past_keys = _cat_rows(mine.past_keys, other.past_keys, dim=1)
            mine.past_values = _cat_rows(mine.past_values, other.past_values, dim=1)
        first.previous_attention_mask = _cat_rows(first.previous_attention_mask, second.previous_attention_mask, dim=1)
        return first

    @property
    @override
    def _generates(self) -> Any:
        return getattr(self.model, "generation_config", None)  # where load_model made it


class BridgeBackend(Backend):
    """`transformer_lens.model_bridge.TransformerBridge` (TransformerLens 3 and 4)."""

    name = "bridge"
    _RESID_PRE, _RESID_POST = "hook_in", "hook_out"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        parameters = inspect.signature(model.original_model.forward).parameters
        shares_kv = getattr(model.original_model.config.get_text_config(), "num_kv_shared_layers", 0)
        self._skips_logits = "logits_to_keep" in parameters and not shares_kv  # such blocks would then skip positions too

    @property
    @override
    def _weights(self) -> nn.Module:
        return self.model.original_model  # type: ignore[no-any-return]

    @property
    @override
    def _config(self) -> Mapping[str, Any]:
        return self.model.original_model.config.to_diff_dict()  # type: ignore[no-any-return]

    @cached_property
    @override
    def cache_renamings(self) -> Renamings:  # type: ignore[override]
        return cache_renamings(self.model)

    @property
    @override
    def decodes_without_us(self) -> bool:
        return all(module is self.model.original_model for module, _ in self.cache_renamings)

    @property
    @override
    def longrope_boundary(self) -> int | None:
        return longrope_boundary(self.model.original_model.config.get_text_config())

    @override
    def token_embeddings(self) -> HookPoint:
        return self._point(self.model.embed, "hook_out", "embed.hook_out")

    @override
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch total"],
        *,
        cache: Cache | None = None,
        keep_cache: bool = False,
        logits: LogitsAt = "none",
    ) -> tuple[Float[Tensor, "batch kept d_vocab"] | None, Cache | None]:
        keep_cache, before = keep_cache or cache is not None, positions_held(cache)
        call: dict[str, Any] = {"attention_mask": mask, "use_cache": keep_cache}
        if cache is not None:
            call["past_key_values"] = cache
        if logits != "all" and self._skips_logits:
            call["logits_to_keep"] = 1  # 0 means all of them
        with handed_over(self.cache_renamings):
            found, cache = self.model(tokens, return_type="logits_and_cache", **call)
        if keep_cache:
            check_grown(before, cache, tokens.shape[1])
        if logits == "none":
            return None, cache
        return (found if logits == "all" else found[:, -1:]), cache

    @override
    def unembed(self, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        with self._muted_head():
            logits: Tensor = self.model.unembed(self.model.ln_final(stream.reshape(1, -1, stream.shape[-1])))
            logits = self.model.adapter.apply_output_logits_transform(logits)  # soft cap; the scale of Cohere, Granite, Falcon
        return logits.reshape(*stream.shape[:-1], -1)

    @override
    def select_rows(self, cache: Cache, rows: Int[Tensor, " rows"]) -> Cache:
        cache.reorder_cache(rows)  # recurrent layers have no batch_select_indices
        return cache

    @override
    def trim_left(self, cache: Cache, columns: int) -> Cache:
        # A sliding layer keeps its last window - 1 keys: only what reaches past the new length goes.
        for layer in cache.layers:
            kept = min(layer.get_seq_length() - columns, layer.keys.shape[2])
            layer.keys, layer.values = layer.keys[:, :, -kept:], layer.values[:, :, -kept:]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length -= columns
        return cache

    @override
    def can_select(self, cache: Cache) -> bool:
        return hasattr(cache, "reorder_cache")

    @override
    def can_join(self, cache: Cache) -> bool:
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        layers = getattr(cache, "layers", None) or ()
        return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    @override
    def join_rows(self, first: Cache, second: Cache) -> Cache:
        # Keys are aligned on the right in sliding layers too: padding on the left is all that both kinds need.
        for mine, other in zip(first.layers, second.layers, strict=True):
            mine.keys, mine.values = _cat_rows(mine.keys, other.keys, 2), _cat_rows(mine.values, other.values, 2)
            if hasattr(mine, "cumulative_length"):
                mine.cumulative_length = max(mine.cumulative_length, other.cumulative_length)
        return first

    @property
    @override
    def _generates(self) -> Any:
        return getattr(self.model.original_model, "generation_config", None)


def backend_of(model: Any) -> Backend:
    """The backend of a model that the user loaded with TransformerLens.

    Raises:
        TypeError: something else, with what to do instead.
        ValueError: a compiled model (hooks added later never fire), one in training mode, or an encoder-decoder.
        NotImplementedError: weights that are offloaded, or placeholders.
    """
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise InputError("the model was compiled: hooks added afterwards never fire; use the model before torch.compile")
    if isinstance(model, TransformerBridge):
        if getattr(model.original_model.config, "is_encoder_decoder", False) or not hasattr(model, "blocks"):
            raise InputError("only decoder-only language models have one residual stream to look at")
        if model.original_model.training:
            raise InputError("the model is in training mode, where dropout changes its states: call model.eval() first")
        backend: Backend = BridgeBackend(model)
    elif isinstance(model, _hooked_transformer()):
        backend = HookedBackend(model)
    else:
        raise InputTypeError(
            f"expected a TransformerBridge or HookedTransformer, got {type(model).__name__}: load one with "
            "tl_l2norm.load_model(...), or wrap a Hugging Face model with "
            "TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )
    _require_weights(model)
    _warn_if_centred(backend)
    return backend


def _require_weights(model: Any) -> None:
    """Refuse placeholders: what TransformerLens computes from weights directly would fail on them, or be wrong."""
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise Unsupported(
            f"{len(away)} weights of this model are placeholders on 'meta' ({away[0]}, ...), offloaded by accelerate or never "
            "loaded: load it whole on one device, in a smaller dtype if it doesn't fit"
        )


def _hooked_transformer() -> type | tuple[()]:
    try:
        from transformer_lens import HookedTransformer
    except ImportError:  # removed in TransformerLens 4
        return ()
    return HookedTransformer  # type: ignore[no-any-return]


_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def _warn_if_centred(backend: Backend) -> None:
    if backend.model in _warned or not backend.centred:
        return
    _warned.add(backend.model)
    warnings.warn(
        "the weights of this model that write to the residual stream are centred: each of its states has mean 0, so its norms "
        "are those of the stream without its mean and not comparable with the unprocessed model's; load it with "
        "from_pretrained_no_processing (or tl_l2norm.load_model)",
        stacklevel=4,
    )


def _cat_rows(first: Tensor, second: Tensor, dim: int) -> Tensor:
    length = max(first.shape[dim], second.shape[dim])
    return torch.cat([_pad_left(first, length, dim), _pad_left(second, length, dim)])


def _pad_left(tensor: Tensor, length: int, dim: int) -> Tensor:
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = [*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :]]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


def _ids(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)
