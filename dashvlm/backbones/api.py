"""A model behind an OpenAI-compatible endpoint as a backbone: it is evaluated like any other, not trained.

One call gives the text and, from the first token's alternatives, the probabilities of the choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from dashvlm.backbones.base import Answers, Backbone, Batch, Encoder
from dashvlm.config.imports import configurable
from dashvlm.data.clip import FrameArray, Messages
from dashvlm.endpoint.client import Teacher
from dashvlm.endpoint.exchange import Reply, Request
from dashvlm.errors import ConfigError, TeacherError

FLOOR = -20.0
"""Log-probability of a choice that is not among the alternatives."""


@final
class ApiEncoder(Encoder):
    """Chats and frames to requests; a batch carries them beside a placeholder of token ids."""

    end_token = 0

    def __init__(self, teacher: Teacher, logprobs: bool) -> None:
        self.teacher, self.logprobs = teacher, logprobs

    def encode(
        self,
        chats: Sequence[Messages],
        frames: Sequence[FrameArray],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """See :meth:`Encoder.encode`; a tensor of ids that stand for requests."""
        if answers is not None:
            raise _untrainable()
        requests: list[Request] = []
        for chat, clip in zip(chats, frames, strict=True):
            requests.append(self.teacher.request(chat, partial(np.asarray, clip), logprobs=self.logprobs))
        size = (int(frames[0].shape[1]), int(frames[0].shape[2])) if len(frames) else (0, 0)
        batch: Any = {"input_ids": torch.zeros(len(chats), 1, dtype=torch.long), "requests": Requests(requests, size)}
        return batch

    def first_divergence(self, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Not known of a remote model."""
        raise _untrainable()

    def decode(self, ids: Tensor) -> list[str]:
        """Not known of a remote model."""
        raise _untrainable()


@dataclass(frozen=True)
class Requests:
    """Requests and the size of their pictures; has a ``to`` so that Lightning passes it on as it is."""

    requests: list[Request]
    size: tuple[int, int]

    def to(self, *args: Any, **kwargs: Any) -> Requests:
        """Nothing to move."""
        return self


@final
class ApiBackbone(Backbone):
    """Text and scores of an endpoint.

    Args:
        encoder: makes the requests.
    """

    hidden_size = 0

    def __init__(self, encoder: ApiEncoder) -> None:
        super().__init__()
        self.encoder, self.net, self.teacher = encoder, nn.Module(), encoder.teacher

    @property
    def roles(self) -> Mapping[str, str]:
        """None: nothing of it is here."""
        return {}

    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def score(self, batch: Batch, choices: Sequence[str], before: Sequence[str] | None = None) -> Tensor:
        """See :meth:`Backbone.score`; from the alternatives of the first token that was written."""
        if before is not None:
            raise ConfigError("a model behind an endpoint scores the first token only", do="use task.reasoning=false")
        rows = [[_logprob(reply, choice) for choice in choices] for reply in self._ask(batch)]
        return torch.tensor(rows).log_softmax(-1)

    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """See :meth:`Backbone.generate`; ``model.loader_options.max_tokens`` is the length."""
        if schema is not None:
            raise ConfigError("objective.constrained=true needs a model of our own")
        return [reply.text for reply in self._ask(batch)]

    def _ask(self, batch: Batch) -> list[Reply]:
        asked: Any = batch["requests"]
        replies = self.teacher.ask(asked.requests, asked.size)
        missing = sum(reply is None for reply in replies)
        if missing:
            tally = self.teacher.tally
            raise TeacherError(
                f"{missing} requests have no answer",
                got="the cap is reached" if tally.capped else "; ".join(tally.failures),
                do="raise model.loader_options.cap_usd, or run it again: nothing that was paid for is asked again",
            )
        return [reply for reply in replies if reply is not None]

    def loss(self, batch: Batch) -> Tensor:
        """Not possible."""
        raise _untrainable()

    def answers(self, batch: Batch, at: Tensor | None = None, tokens: Tensor | None = None) -> Answers:
        """Not possible."""
        raise _untrainable()

    def pooled(self, batch: Batch, how: Literal["last", "mean"] | nn.Module) -> Tensor:
        """Not possible."""
        raise _untrainable()


@configurable("backbone")
def load(
    checkpoint: str, cache_dir: str, logprobs: bool = True, image_kwargs: Any = None, roles: Any = None,
    dtype: Any = None, quantization: Any = None, attn_implementation: Any = None, **options: Any,
) -> ApiBackbone:  # fmt: skip
    """Make the backbone; what belongs to local models is ignored.

    Args:
        checkpoint: name of the remote model.
        cache_dir: where paid answers are kept.
        logprobs: ask for the alternatives of the first token; without them a choice scores what was written.
        image_kwargs: ignored, like ``roles, dtype, quantization, attn_implementation``.
        roles: ignored.
        dtype: ignored.
        quantization: ignored.
        attn_implementation: ignored.
        options: see :class:`dashvlm.endpoint.client.Teacher`.
    """
    return ApiBackbone(ApiEncoder(Teacher({**options, "model": checkpoint}, Path(cache_dir) / "teacher"), logprobs))


def _logprob(reply: Reply, choice: str) -> float:
    """The likeliest spelling of a choice among the alternatives; without any, whether it was written."""
    if not reply.first:
        return 0.0 if reply.text.strip().lower().startswith(choice.lower()) else FLOOR
    same = [value for token, value in reply.first.items() if token.strip().lower() == choice.lower()]
    return max(same, default=FLOOR)


def _untrainable() -> ConfigError:
    return ConfigError(
        "a model behind an endpoint cannot be trained", do="use `python -m dashvlm.evaluate model=openai`"
    )
