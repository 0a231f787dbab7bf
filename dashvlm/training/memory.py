"""Out of memory is a result: say how large the batch was and which settings would fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dashvlm.backbones.footprint import footprint, memory_gb
from dashvlm.errors import DashVLMError, OutOfMemory

PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate", "alloc failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error).lower() for p in PHRASES)


def explained(
    error: BaseException, cfg: Mapping[str, Any], tokens: int | None, limit_gb: float | None, training: bool = True
) -> OutOfMemory:
    """Turn an out-of-memory error into one that names frames, tokens and three knobs that would fit.

    Args:
        error: what was raised.
        cfg: the configuration.
        tokens: length of the longest sample of the batch, if known.
        limit_gb: the memory there is, in 10^9 bytes; without it, knobs are ranked by what they save.
        training: whether it happened in training, or while scoring.
    """
    data = cfg["data"]
    return OutOfMemory(
        f"out of memory with {data['num_frames']} frames a sample"
        + (f" ({tokens} tokens)" if tokens else "")
        + (
            f" and data.batch_size={data['batch_size']}" if training else f", scoring {data['eval_batch_size']} at once"
        ),
        got=str(error).strip().splitlines()[0][:200] or type(error).__name__,
        do="any of these fits by prediction: " + "; ".join(knobs(cfg, limit_gb) if training else scoring_knobs(cfg)),
    )


def knobs(cfg: Mapping[str, Any], limit_gb: float | None) -> list[str]:
    """Return the three changes that fit (or, without a limit, that save most), mildest first."""
    found = []
    for words, change in CHANGES:
        other = copy.deepcopy(dict(cfg))
        if change(other) is False:
            continue
        found.append((words(other), _predicted(other)))
    now = _predicted(cfg)
    if limit_gb is None:
        found.sort(key=lambda item: item[1])
        fitting = [words for words, peak in found if peak < now]
    else:
        # The prediction is rough: trust its ratios, scaled to the fact that the present one failed.
        allowed = min(limit_gb, now) * 0.9
        fitting = [w for w, p in found if p <= allowed] or [w for w, _ in sorted(found, key=lambda i: i[1])]
    return fitting[:3]


def scoring_knobs(cfg: Mapping[str, Any]) -> list[str]:
    """Return what makes scoring smaller."""
    smaller = max(int(cfg["data"]["eval_batch_size"]) // 4, 1)
    return [
        f"data.eval_batch_size={smaller}",
        "peft=qlora",
        f"data.num_frames={max(int(cfg['data']['num_frames']) // 2, 1)}",
    ]


def _predicted(cfg: Mapping[str, Any]) -> float:
    size = cfg["data"]["frame_size"]
    try:
        model = footprint(cfg["model"], Path(cfg["paths"]["cache_dir"]) / "twins", tuple(size) if size else None)
        return memory_gb(model, cfg, int(cfg["data"]["num_frames"]), training=True)["total"]
    except DashVLMError:  # dimensions of an unknown checkpoint: rank by frames and batch alone
        return float(cfg["data"]["num_frames"]) * float(cfg["data"]["batch_size"])


def _checkpointing(cfg: dict[str, Any]) -> bool:
    before, cfg["model"]["gradient_checkpointing"] = cfg["model"]["gradient_checkpointing"], True
    return not before


def _smaller_batch(cfg: dict[str, Any]) -> bool:
    batch = int(cfg["data"]["batch_size"])
    cfg["data"]["batch_size"] = max(batch // 4, 1)
    cfg["trainer"]["accumulate_grad_batches"] = int(cfg["trainer"]["accumulate_grad_batches"]) * (
        batch // max(batch // 4, 1)
    )
    return batch > 1


def _quantised(cfg: dict[str, Any]) -> bool:
    before, cfg["peft"]["quantization"] = cfg["peft"].get("quantization"), "nf4"
    return not before and cfg["peft"]["method"] == "lora"


def _half_precision(cfg: dict[str, Any]) -> bool:
    before, cfg["trainer"]["precision"] = cfg["trainer"]["precision"], "bf16-true"
    cfg["model"]["dtype"] = "bfloat16"
    return str(before) == "32-true"


def _fewer_frames(cfg: dict[str, Any]) -> bool:
    frames = int(cfg["data"]["num_frames"])
    cfg["data"]["num_frames"] = max(frames // 2, 1)
    return frames > 1


CHANGES: list[tuple[Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], bool]]] = [
    (lambda c: "model.gradient_checkpointing=true", _checkpointing),
    (
        lambda c: (
            f"data.batch_size={c['data']['batch_size']} "
            f"trainer.accumulate_grad_batches={c['trainer']['accumulate_grad_batches']} (the same batch in parts)"
        ),
        _smaller_batch,
    ),
    (lambda c: "trainer.precision=bf16-true model.dtype=bfloat16", _half_precision),
    (lambda c: "peft=qlora", _quantised),
    (lambda c: f"data.num_frames={c['data']['num_frames']}", _fewer_frames),
]
"""What can be changed, the mildest first: how to say it, and the change (False if it changes nothing)."""
