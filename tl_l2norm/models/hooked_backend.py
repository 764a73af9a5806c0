"""`HookedTransformer` (TransformerLens 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from tl_l2norm.models.backend import Backend, LogitsAt
from tl_l2norm.models.cache import check_grown, positions_held
from tl_l2norm.models.cache_rows import Cache, CacheRows, LensCacheRows


class HookedBackend(Backend):
    """`transformer_lens.HookedTransformer` (TransformerLens 3)."""

    name = "hooked"
    _RESID_PRE, _RESID_POST = "hook_resid_pre", "hook_resid_post"

    @property
    @override
    def cache_rows(self) -> CacheRows:
        return LensCacheRows()

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

    @property
    @override
    def generation_config(self) -> Any:
        return getattr(self.model, "generation_config", None)  # where load_model made it
