"""Loaders of samples: decode once, encode in workers, the same order whatever the machine.

The order of training samples is a pure function of the seed and the step: a stream of
permutations cut into batches. A resumed run starts at its step, and two processes together see
what one would have seen.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dashvlm.data.clip import Clip, Sample, Split
from dashvlm.data.encoded import EncodedStore
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import Item, SampleDataset
from dashvlm.data.manifest import Quarantined
from dashvlm.data.processes import ForkServerContext
from dashvlm.data.samplers import ShardSampler, StreamSampler, WholeSteps, looks_at, side_by_side
from dashvlm.data.sampling import Times
from dashvlm.data.stretches import StretchDataset
from dashvlm.errors import DataError
from dashvlm.safety import signals

log = logging.getLogger(__name__)
Collate = Callable[[list[Any]], dict[str, Any]]
Stage = Literal["train", "val", "predict", "pixels_off", "pairs", "stream"]


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
            [looks_at(s) for s in self.samples["train"]] if self.options.get("by_clip") else None,
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
            sampler=ShardSampler(len(dataset), *self._place(), [] if stage == "stream" else side_by_side(samples)),
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
        pinned = torch.cuda.is_available()  # pages that the card copies from by itself
        return {"num_workers": workers, "pin_memory": pinned,
                "multiprocessing_context": context, "persistent_workers": True,
                "worker_init_fn": signals.start_worker}  # fmt: skip


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
