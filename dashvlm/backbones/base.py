"""The backbone contract. Backbones speak chat messages and frames; they know no task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dashvlm.data.clip import FrameArray, Messages
from dashvlm.errors import ConfigError

Batch = dict[str, Tensor]
"""Model inputs. ``labels`` is present only in training batches and -100 outside the answer."""

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """What a network makes of given answers; N is the longest answer's length.

    Attributes:
        logprobs: of each answer token, [B, N]; 0 outside the mask.
        mask: of answer and end tokens, [B, N].
        likeliest: the token it would have written at each place, [B, N].
        choices: log-probabilities [B, C] of some tokens at a place in each answer, if asked for.
    """

    logprobs: Tensor
    mask: Tensor
    likeliest: Tensor
    choices: Tensor | None = None


class Encoder(ABC):
    """The weightless half of a backbone: chats and frames to tensors. Runs in loader workers.

    Attributes:
        end_token: id of the token that ends an answer.
    """

    end_token: int
    frames_apart = False
    """Whether each frame is a picture of its own to the network, so that prompts can share its features."""

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
    def first_divergence(self, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Where several answers part: the tokens they share, and the token each goes on with.

        Raises:
            ConfigError: if two of them go on with the same token.
        """

    def choice_tokens(self, choices: Sequence[str]) -> list[int]:
        """The first token of each choice as the model would write it after the prompt.

        Raises:
            ConfigError: if two choices begin with the same token.
        """
        shared, tokens = self.first_divergence(choices)
        if shared:
            raise ConfigError(
                "choices cannot be told apart by their first token", got=", ".join(map(repr, choices)),
                do="use answers that begin differently, such as letters",
            )  # fmt: skip
        return tokens

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
    auto_class = "AutoModelForImageTextToText"
    """Class of transformers that loads what ``export`` writes."""

    def raw(self, net: Any, batch: Batch) -> Tensor:
        """What a network of this kind makes of a batch before any head of ours; exports are compared by it."""
        logits: Tensor = net(**batch).logits
        return logits

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over the answer tokens, a scalar."""

    @abstractmethod
    def score(self, batch: Batch, choices: Sequence[str], before: Sequence[str] | None = None) -> Tensor:
        """Log-probabilities [B, C] of the choices, normalised over them.

        Args:
            batch: encoded without answers.
            choices: what may be written.
            before: a text for each prompt that the answer has begun with.
        """

    @abstractmethod
    def answers(self, batch: Batch, at: Tensor | None = None, tokens: Tensor | None = None) -> Answers:
        """Judge the answers of a batch with ``labels``.

        Args:
            batch: encoded with answers.
            at: for each answer the number of one of its tokens, [B].
            tokens: ids [B, C] whose log-probabilities there are wanted, normalised over them.
        """

    def answer_logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer token and the mask, both [B, N]; see :meth:`answers`."""
        found = self.answers(batch)
        return found.logprobs, found.mask

    def end_tokens(self) -> list[int]:
        """Ids of all tokens that end a text."""
        return [self.encoder.end_token]

    def sample(
        self, batch: Batch, group: int, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Draw ``group`` completions of each prompt: tokens and mask, both [B * group, N].

        Raises:
            ConfigError: if the backbone cannot be trained.
        """
        raise ConfigError("this backbone draws no completions for training", got=type(self).__name__)

    def completion_logprobs(
        self, batch: Batch, ids: Tensor, mask: Tensor, temperature: float = 1.0, shared: bool = True
    ) -> Tensor:
        """Log-probabilities [B * G, N] of completions of B prompts.

        Args:
            batch: B prompts, encoded without answers.
            ids: [B * G, N], the completions of a prompt one after the other.
            mask: 1 for real tokens.
            temperature: divides the logits.
            shared: encode each prompt once; else once for each of its completions.
        """
        raise ConfigError("this backbone judges no completions", got=type(self).__name__)

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

    def generate_and_score(
        self, batch: Batch, choices: Sequence[str], max_new_tokens: int, options: Mapping[str, Any] | None = None
    ) -> tuple[list[str], Tensor]:
        """:meth:`generate` and :meth:`score`, from one pass over the prompts where the backbone can."""
        return self.generate(batch, max_new_tokens, options), self.score(batch, choices)

    def encode_frames(self, parts: Sequence[Batch]) -> Mapping[str, Tensor]:
        """Features of frames, encoded once each, where ``encoder.frames_apart``.

        Args:
            parts: encoded pictures, with ``num_frames``.
        """
        raise NotImplementedError

    def with_features(self, prompt: Batch, features: Mapping[str, Tensor], picks: Tensor) -> Batch:
        """Inputs of samples with one prompt, from the features of the frames that each looks at.

        Args:
            prompt: one encoded sample.
            features: see :meth:`encode_frames`.
            picks: numbers of frames, [B, T].
        """
        raise NotImplementedError

    def ready(self, batch: Batch) -> Batch:
        """Inputs as the network takes them, from a batch of the loaders on its device."""
        return batch

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
