"""What traces and responses need to know of a model, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from tl_l2norm.core.errors import Unsupported
from tl_l2norm.core.identity import Identity
from tl_l2norm.core.protocols import Tokenizer
from tl_l2norm.models.block_calls import BlockRuns


class Described(ABC):
    """A model as traces describe it: a `Backend`, or an engine that runs it elsewhere."""

    name: ClassVar[str]
    """What runs it."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """Size of the vocabulary."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Longest sequence that it takes."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, if it has one."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """What the model is called."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Data type of the weights, and so of the stream."""

    @property
    @abstractmethod
    def centred(self) -> bool:
        """Whether weights that write to the stream were centred (`center_writing_weights`)."""

    @property
    @abstractmethod
    def generation_config(self) -> Any:
        """The model's generation config, if it has one."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that compute the norms, beside those that always do."""
        return {}

    @property
    def options(self) -> Mapping[str, str]:
        """What it was told to do otherwise than by default, as far as norms move with it."""
        return {}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Of weights and configuration, see `tl_l2norm.models.fingerprint`; "" where it isn't known."""

    @abstractmethod
    def identity(self) -> Identity:
        """Who the model is now: fingerprints of weights, tokenizer and chat template, and the number of hooks."""

    def block_runs(self, layers: tuple[int, ...]) -> BlockRuns:
        """What it takes to run these blocks again after a pass.

        Raises:
            NotImplementedError: they can't be.
        """
        if layers:
            raise Unsupported(f"{self.name} doesn't run a block again")
        return BlockRuns({})

    @abstractmethod
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""
