"""`TransformerBridge` (TransformerLens 3 and 4)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.models.backend import Backend, LogitsAt
from tl_l2norm.models.cache import Renamings, cache_renamings, check_grown, handed_over, longrope_boundary, positions_held
from tl_l2norm.models.cache_rows import Cache, CacheRows, DynamicCacheRows


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
    def cache_rows(self) -> CacheRows:
        return DynamicCacheRows()

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
        scores, cache = self._run(tokens, call)
        if keep_cache:
            check_grown(before, cache, tokens.shape[1])
        if logits == "none":
            return None, cache
        return (scores if logits == "all" else scores[:, -1:]), cache

    def _run(self, tokens: Int[Tensor, "batch pos"], call: dict[str, Any]) -> tuple[Tensor, Cache | None]:
        with handed_over(self.cache_renamings):
            return self.model(tokens, return_type="logits_and_cache", **call)  # type: ignore[no-any-return]

    @override
    def unembed(self, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        norm = getattr(self.model, "ln_final", None)
        if norm is None:
            raise Unsupported(
                f"TransformerLens knows no final norm of this {self.model.cfg.architecture}, so how logits come of a state "
                "isn't known: no logit lens, no output_entropy"
            )
        with self._muted_head():
            logits: Tensor = self.model.unembed(norm(stream.reshape(1, -1, stream.shape[-1])))
            logits = self.model.adapter.apply_output_logits_transform(logits)  # soft cap; the scale of Cohere, Granite, Falcon
        return logits.reshape(*stream.shape[:-1], -1)

    @property
    @override
    def generation_config(self) -> Any:
        return getattr(self.model.original_model, "generation_config", None)
