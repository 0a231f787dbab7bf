"""The backbone contract. Backbones speak chat messages and frames; they know no task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dashvlm.data.clip import FrameArray, Messages

Batch = dict[str, Tensor]
"""Model inputs. ``labels`` is present only in training batches and -100 outside the answer."""

IGNORED = -100


class Encoder(ABC):
    """The weightless half of a backbone: chats and frames to tensors. Runs in loader workers."""

    @abstractmethod
    def encode(
        self,
        chats: Sequence[Messages],
        frames: Sequence[FrameArray],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """Encode a batch.

        Args:
            chats: one user turn each; the i-th image part stands for the i-th frame.
            frames: uint8 RGB [T, H, W, 3] per sample.
            answers: target texts. With them, the batch is right-padded and has ``labels`` that
                cover exactly the answer and the end token; without them it is left-padded and
                ends where the model starts to answer.
            prefix: words that the answer has begun with already, for generation.

        Returns:
            Tensors for the model; the first dimension of ``input_ids`` is the batch.
        """

    @abstractmethod
    def choice_tokens(self, choices: Sequence[str]) -> list[int]:
        """The first token of each choice as the model would write it after the prompt.

        Raises:
            ConfigError: if two choices begin with the same token.
        """

    @abstractmethod
    def decode(self, ids: Tensor) -> list[str]:
        """Turn generated ids [B, L] into texts without special tokens."""


class Backbone(nn.Module, ABC):
    """A vision-language model with weights.

    Attributes:
        encoder: its weightless half.
        net: the network (a PEFT model when adapters are attached).
        hidden_size: width of :meth:`pooled`.
    """

    encoder: Encoder
    net: nn.Module
    hidden_size: int

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over the answer tokens, a scalar."""

    @abstractmethod
    def score(self, batch: Batch, choices: Sequence[str]) -> Tensor:
        """Log-probabilities [B, C] of the choices, normalised over them."""

    @abstractmethod
    def answer_logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer token, from a batch with ``labels``.

        Returns:
            Values [B, N] and a mask [B, N] of the answer and end tokens, N the longest answer's length;
            values are 0 where the mask is.
        """

    @abstractmethod
    def pooled(self, batch: Batch, how: Literal["last", "mean"] | nn.Module) -> Tensor:
        """A representation [B, H] of the prompt.

        Args:
            batch: encoded without answers.
            how: ``last`` real token, ``mean`` of the real tokens, or a module that maps
                (hidden states [B, L, H], mask [B, L]) to [B, H].
        """

    @abstractmethod
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Continuation of each prompt, without the prompt; greedy unless the options say otherwise.

        Args:
            batch: encoded without answers.
            max_new_tokens: length limit.
            options: beams, penalties, sampling: arguments of transformers' ``generate``.
            schema: a JSON schema that the answer must keep to, from its first character.
        """

    @property
    @abstractmethod
    def roles(self) -> Mapping[str, str]:
        """Role (language, vision, connector, ...) -> regular expression of module names."""

    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device

    def trainable(self) -> dict[str, Any]:
        """Name -> parameter of everything that requires a gradient."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}
