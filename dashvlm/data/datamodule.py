"""Loaders of samples: decode once, encode in workers, the same order whatever the machine.

The order of training samples is a pure function of the seed and the step: a stream of
permutations cut into batches. A resumed run starts at its step, and two processes together see
what one would have seen.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from dashvlm.data.clip import Clip, Sample, Split
from dashvlm.data.encoded import EncodedStore
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import Item, SampleDataset
from dashvlm.data.manifest import Quarantined
from dashvlm.data.processes import ForkServerContext
from dashvlm.data.sampling import Times
from dashvlm.data.stretches import StretchDataset
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety import signals

log = logging.getLogger(__name__)
Collate = Callable[[list[Any]], dict[str, Any]]
Stage = Literal["train", "val", "predict", "pixels_off", "pairs", "stream"]


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


class ClipDataModule(pl.LightningDataModule):
    """Loaders for the three splits.

    Args:
        samples: split -> samples.
        store: the frame store, already filled.
        collate: stage (train, val, predict, pairs) -> function that encodes items; that of ``predict`` has no
            access to targets' text.
        options: ``batch_size, eval_batch_size, num_workers, pixels, augmentation`` of ``data``.
        seed: of the training order.
        num_batches: training batches of the whole run.
        repeats: steps that are made on one batch.
        accumulate: batches of one optimiser step.
        encoded: what the model makes of frames, where it is kept.
        lengths: of the training samples, see :class:`StreamSampler`.
    """

    def __init__(
        self,
        samples: Mapping[Split, Sequence[Sample]],
        store: FrameStore,
        collate: Callable[[Stage], Collate],
        options: Mapping[str, Any],
        seed: int,
        num_batches: int = 0,
        steps_per_batch: int = 1,
        accumulate: int = 1,
        encoded: EncodedStore | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoded, self.lengths = encoded, lengths
        self.samples, self.store, self.options, self.seed = dict(samples), store, options, seed
        self.collate = collate
        self.num_batches, self.steps_per_batch, self.accumulate = num_batches, steps_per_batch, accumulate
        self.kept = True  # whether the store keeps the frames of a stream
        self.start = 0  # first batch of the training loader; a resumed run sets it

    def train_dataloader(self) -> DataLoader[Item] | WholeSteps:
        """Batches of the training stream."""
        sampler = StreamSampler(
            len(self.samples["train"]),
            int(self.options["batch_size"]),
            self.num_batches,
            self.seed,
            *self._place(),
            self.start,
            self.steps_per_batch,
            [_looks_at(s) for s in self.samples["train"]] if self.options.get("by_clip") else None,
            self.lengths,
            int(self.options.get("length_window") or 0),
        )
        augmentation = self.options.get("augmentation")
        dataset = SampleDataset(self.samples["train"], self.store, self._blank(), augmentation, self.encoded)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=self.collate("train"), **self.workers())
        return loader if self.accumulate == 1 else WholeSteps(loader, self.accumulate)

    def val_dataloader(self) -> DataLoader[Item]:
        """The validation split in order."""
        return self.eval_dataloader(self.samples["val"], stage="val")

    def eval_dataloader(self, samples: Sequence[Sample], stage: Stage = "predict") -> DataLoader[Item]:
        """Samples in order, none dropped; ``pixels_off`` makes every frame grey, ``stream`` shares frames of a clip."""
        size = int(self.options["eval_batch_size"])
        blank = stage == "pixels_off" or self._blank()
        dataset: Any = SampleDataset(samples, self.store, blank, encoded=self.encoded)
        if stage == "stream":
            dataset = StretchDataset(samples, self.store, size, self.kept, self._blank())
        return DataLoader(
            dataset,
            batch_size=1 if stage == "stream" else size,
            sampler=ShardSampler(len(dataset), *self._place(), [] if stage == "stream" else _side_by_side(samples)),
            collate_fn=self.collate(stage),
            **self.workers(),
        )

    def _blank(self) -> bool:
        return self.options.get("pixels", "on") == "off"

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def workers(self) -> dict[str, Any]:
        """Arguments of a loader that say who loads."""
        workers = int(self.options["num_workers"])
        if not workers:
            return {"num_workers": 0}
        # A decoder or tokenizer must not be forked while a thread of the parent holds a lock. The
        # fork server imports the heavy modules once for the workers of all loaders.
        context = ForkServerContext()
        context.set_forkserver_preload(["torch", "transformers", "dashvlm.data.datamodule"])
        with signals.shielded():  # a signal to the whole group is the trainer's, which still needs its workers
            forkserver.ensure_running()
        return {"num_workers": workers, "multiprocessing_context": context, "persistent_workers": True,
                "worker_init_fn": signals.start_worker}  # fmt: skip


def _looks_at(sample: Sample) -> tuple[str, tuple[float, ...]]:
    return sample.clip.path, sample.times_s


def _side_by_side(samples: Sequence[Sample]) -> list[int]:
    """Places of samples, those that look at the same frames behind the first of them."""
    first: dict[Any, int] = {}
    for place, sample in enumerate(samples):
        first.setdefault(_looks_at(sample), place)
    return sorted(range(len(samples)), key=lambda i: first[_looks_at(samples[i])])


def _size_of(clips: Sequence[Clip], store: FrameStore) -> tuple[int, int]:
    """Height and width of the first clip that can be read."""
    for clip in clips:
        if "failed" not in clip.extra:
            with contextlib.suppress(DataError):
                index = store.index(Path(clip.path))
                return index.height, index.width
    return 720, 1280


def decode_once(
    clips: Sequence[Clip], times: Mapping[str, Times], store: FrameStore, max_bad_fraction: float
) -> tuple[dict[str, str], list[Quarantined]]:
    """Fill the store with all frames that a sweep needs, in one pass over the clips.

    Args:
        clips: of all splits.
        times: clip_id -> ascending times, see :func:`union_of_times`.
        store: the store.
        max_bad_fraction: largest share of training clips that may be damaged.

    Returns:
        clip_id -> problem of damaged validation and test clips (they are scored as failed), and
        the quarantine entries of damaged training clips.

    Raises:
        DataError: if too many training clips are damaged.
    """

    def fill(clip: Clip) -> str | None:
        if "failed" in clip.extra or not len(times[clip.clip_id]):
            return None
        try:
            store.fill(Path(clip.path), times[clip.clip_id])
        except DataError as error:
            return str(error).replace("\n  got:", ":").splitlines()[0]
        except OSError as error:
            log.warning("frame store: %s; frames of %s are decoded anew each time", error, clip.clip_id)
        return None

    height, width = store.size or _size_of(clips, store)
    needed = sum(len(t) for t in times.values()) * height * width * 3 / 1e9
    if needed > store.max_gb:
        log.warning(
            "the frames of this sweep take about %.0f GB, the store holds data.store_gb=%g: clips are decoded again "
            "in every epoch; raise data.store_gb or lower data.frame_size", needed, store.max_gb,
        )  # fmt: skip
    # FFmpeg runs outside the interpreter lock, so threads are enough.
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        problems = dict(zip((c.clip_id for c in clips), pool.map(fill, clips), strict=True))
    bad = {clip_id: why for clip_id, why in problems.items() if why}
    split = {c.clip_id: c.split for c in clips}
    quarantine = [Quarantined(i, "train", why) for i, why in bad.items() if split[i] == "train"]
    for clip_id, why in bad.items():
        log.warning("%s clip %s: %s", split[clip_id], clip_id, why)
    total = sum(c.split == "train" for c in clips)
    if len(quarantine) > max_bad_fraction * max(total, 1):
        raise DataError(
            f"{len(quarantine)} of {total} training clips cannot be decoded, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows",
            got="; ".join(f"{q.clip_id}: {q.reason}" for q in quarantine[:3]),
            do="replace the files or raise data.max_bad_fraction",
        )
    return {i: why for i, why in bad.items() if split[i] != "train"}, quarantine
