"""Which samples come when: a pure function of the seed and the step, however many processes there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dashvlm.data.clip import Sample
from dashvlm.data.items import Item
from dashvlm.errors import ConfigError


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, pass number) cut from an endless stream of permutations.

    Batches cross the borders of permutations, so every batch is full and every sample comes up
    equally often. The whole training run is one iteration: epochs are a matter of counting.

    Args:
        num_samples: size of the dataset.
        batch_size: of all processes together.
        num_batches: length of the whole run.
        seed: of the permutations.
        rank: this process.
        world_size: number of processes; each gets every ``world_size``-th sample of a batch.
        start: first batch to give out, for a resumed run.
        steps_per_batch: how often each batch is given out in a row.
        together: a key for each sample; those with equal ones follow each other, each once a turn.
        lengths: of the samples, in any unit; with ``window`` batches so many batches are cut from samples sorted by
            it, in a drawn order, so that batches hold samples of similar length.
        window: batches that are sorted together.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        steps_per_batch: int = 1,
        together: Sequence[Any] | None = None,
        lengths: Sequence[int] | None = None,
        window: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(
                "data.batch_size is shared by all processes and must divide evenly",
                got=f"{batch_size} over {world_size}",
                do=f"use a multiple of {world_size}",
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.num_batches, self.start, self.steps_per_batch = num_batches, start, steps_per_batch
        self.rank, self.world_size = rank, world_size
        self.members: dict[Any, list[int]] = {}
        for number, key in enumerate(together if together is not None else range(num_samples)):
            self.members.setdefault(key, []).append(number)
        self.lengths, self.window = lengths, window
        self._last: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return self.num_batches

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Return the whole batch ``number`` of the stream, of all processes together."""
        first = number // self.steps_per_batch * self.batch_size
        return [
            (self._order(p // self.num_samples)[p % self.num_samples], p // self.num_samples)
            for p in range(first, first + self.batch_size)
        ]

    def _order(self, turn: int) -> list[int]:
        if self._last is None or self._last[0] != turn:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            groups = list(self.members.values())
            order = torch.randperm(len(groups), generator=generator).tolist()
            flat = [number for place in order for number in groups[place]]
            self._last = turn, self._by_length(flat, turn, generator) if self.lengths and self.window else flat
        return self._last[1]

    def _by_length(self, order: list[int], turn: int, generator: torch.Generator) -> list[int]:
        """Samples of a turn with those of similar length in one batch."""
        assert self.lengths is not None
        size, begin = self.batch_size, -(turn * self.num_samples) % self.batch_size  # the last turn's batch ends first
        found = order[:begin]
        for start in range(begin, len(order), size * self.window):
            part = sorted(order[start : start + size * self.window], key=lambda i: self.lengths[i])  # type: ignore[index]
            rest = len(part) % size  # what fills no batch comes last, where the next turn goes on
            batches = [part[i : i + size] for i in range(rest, len(part), size)]
            mixed = torch.randperm(len(batches), generator=generator).tolist()
            found += [number for place in mixed for number in batches[place]] + part[:rest]
        return found

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(self.start, self.num_batches):
            yield self.batch(number)[self.rank :: self.world_size]


class ShardSampler(Sampler[int]):
    """Every ``world_size``-th sample in order; short shards repeat their first sample."""

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1, order: Sequence[int] = ()) -> None:
        places = order or range(num_samples)
        self.indices = list(places[rank::world_size])
        length = -(-num_samples // world_size)
        self.indices += [places[rank % num_samples]] * (length - len(self.indices)) if num_samples else []

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class WholeSteps:
    """Batches of a loader, each with the taught tokens of its whole optimiser step (``step_tokens``).

    Answers differ in length: the mean of the batches' means is not the mean over the tokens of the step, which
    one large batch would give.
    """

    def __init__(self, loader: DataLoader[Item], accumulate: int) -> None:
        self.loader, self.accumulate = loader, accumulate

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = iter(self.loader)
        while batches := list(itertools.islice(stream, self.accumulate)):
            if all("tokens" in batch for batch in batches):
                total = torch.stack([batch["tokens"] for batch in batches]).sum(0)
                batches = [{**batch, "step_tokens": total} for batch in batches]
            yield from batches


def looks_at(sample: Sample) -> tuple[str, tuple[float, ...]]:
    """What tells the frames of a sample from those of others."""
    return sample.clip.path, sample.times_s


def side_by_side(samples: Sequence[Sample]) -> list[int]:
    """Places of samples, those that look at the same frames behind the first of them."""
    first: dict[Any, int] = {}
    for place, sample in enumerate(samples):
        first.setdefault(looks_at(sample), place)
    return sorted(range(len(samples)), key=lambda i: first[looks_at(samples[i])])
