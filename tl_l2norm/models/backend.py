"""What this library needs of a model, the same for `TransformerBridge` and `HookedTransformer`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from tl_l2norm.core.errors import InputError, InputTypeError, Unsupported
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.layers import resid_post, unknown_name
from tl_l2norm.core.protocols import Tokenizer
from tl_l2norm.models.block_calls import BlockRuns
from tl_l2norm.models.cache import Renamings
from tl_l2norm.models.cache_rows import Cache, CacheRows
from tl_l2norm.models.described import Described
from tl_l2norm.models.final_norm import FinalNorm, read_final_norm
from tl_l2norm.models.fingerprint import model_fingerprint, template_fingerprint, tokenizer_fingerprint
from tl_l2norm.models.hooks import attached, foreign_hooks, hook_points, muted
from tl_l2norm.text.turn_ends import turn_ends

LogitsAt = Literal["none", "last", "all"]


class Backend(Described):
    """A model and the few things that the two kinds of model do differently. Made by `backend_of`."""

    is_ours: ClassVar = False
    """Whether nothing of the user's runs through its hook points: what is attached there nobody else hears."""

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
        """Size of the vocabulary."""
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
        """Fingerprints of weights, tokenizer and chat template, and the number of hooks, as they are now.

        To be asked before a run attaches hooks of its own.
        """
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
    def checked_as(self) -> Any:
        """What a check of how the model decodes is remembered by."""
        return self.model

    @property
    def points(self) -> Sequence[HookPoint]:
        """Every hook point that a pass goes through."""
        return hook_points(self.model)

    @property
    @abstractmethod
    def cache_rows(self) -> CacheRows:
        """Selects, joins and trims rows of the model's KV cache."""

    @property
    @abstractmethod
    def _weights(self) -> nn.Module:
        """The module that holds all weights."""

    @property
    @abstractmethod
    def _config(self) -> Mapping[str, Any]:
        """The configuration that the model was made from."""

    @cached_property
    def _embedding(self) -> Tensor:
        embedding: Tensor = next(self.model.embed.parameters())
        return embedding

    @property
    def device(self) -> torch.device:
        """Where its embedding is, and so where tokens go."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, and so of the stream."""
        return self._embedding.dtype

    @property
    def centred(self) -> bool:
        """Whether weights that write to the stream were centred (`center_writing_weights`): embeddings then have mean 0."""
        embeddings = self._embedding.detach()[:256].float()
        return bool(embeddings.mean(-1).abs().max() < 1e-3 * embeddings.std())

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

    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a turn, by the model's generation config, tokenizer and chat template, those outside of its
        vocabulary left out.
        """
        ends = turn_ends(self.tokenizer, _ids(getattr(self.generation_config, "eos_token_id", None)))
        return frozenset(end for end in ends if 0 <= end < len(self._embedding))

    @property
    @abstractmethod
    def generation_config(self) -> Any:
        """The model's generation config, if it has one."""

    @override
    def block_runs(self, layers: tuple[int, ...]) -> BlockRuns:
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


def _ids(ids: Any) -> frozenset[int]:
    given = [] if ids is None else ids.tolist() if isinstance(ids, Tensor) else ids
    listed = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
    if wrong := [one for one in listed if isinstance(one, bool) or not isinstance(one, int)]:
        raise InputError(f"eos_token_id of the model's generation config has {wrong[0]!r}, which is no token id: set ids")
    return frozenset(listed)
