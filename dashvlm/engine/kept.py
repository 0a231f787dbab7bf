"""What is kept of frames: the features of a frozen vision half, the processor's pixels, or nothing, and why.

Decided by what trains, by size and by how often frames are looked at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytorch_lightning as pl
import torch
import transformers
from torch import nn

from dashvlm.backbones.encoder import HFEncoder
from dashvlm.backbones.frame_encoder import FEATURES, PIXELS
from dashvlm.backbones.hf_backbone import HFBackbone
from dashvlm.data.encoded import EncodedFrames
from dashvlm.engine.prepare import Data, evaluation_samples
from dashvlm.errors import ConfigError, DataError
from dashvlm.training.module import VLMModule

Config = Mapping[str, Any]
WORTH = 1.25
"""Uses of each frame from which on keeping what was made of it pays."""


@dataclass(frozen=True)
class Kept:
    """What is kept of frames.

    Attributes:
        what: ``features``, ``pixels`` or ``nothing``.
        why: in words.
        frame_bytes: of each frame.
    """

    what: str
    why: str
    frame_bytes: int = 0


def decide(cfg: Config, data: Data, module: VLMModule, trainer: pl.Trainer) -> tuple[Kept, str]:
    """Decide what is kept, and name all that decides what it is made of.

    Raises:
        ConfigError: if ``data.features=on`` or ``data.encoded=on`` asks for what cannot be.
    """
    options, backbone = cfg["data"], module.backbone
    features, pixels = str(options.get("features", "auto")), str(options.get("encoded", "auto"))
    no_pixels = _no_pixels(cfg, module)
    if features == pixels == "off":
        no_pixels = "data.encoded=off and data.features=off"
    first = None if no_pixels else _first_frame(data)
    if not no_pixels and first is None:
        no_pixels = "no frame can be read"
    if no_pixels or first is None:
        if "on" in (features, pixels):
            raise ConfigError("data.features=on, data.encoded=on: not possible here", got=no_pixels, do="use auto")
        return Kept("nothing", no_pixels), ""
    assert isinstance(backbone, HFBackbone)
    assert isinstance(backbone.encoder, HFEncoder)
    assert backbone.encoder.apart is not None
    made = backbone.encoder.apart.encode(first)
    processor = backbone.encoder.processor.image_processor
    by: dict[str, Any] = {
        "versions": [transformers.__version__, PIL.__version__, _torchvision()],
        "processor": [type(processor).__name__, processor.to_dict(), backbone.encoder.image_kwargs],
    }
    pixel_bytes, uses = _bytes(made), _uses(cfg, data, module)
    why_not, feature_bytes, parts = "data.features=off", 0, list[nn.Module]()
    if features != "off":
        why_not, feature_bytes, parts = _try_features(cfg, backbone, made, trainer)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if features == "on" and why_not:
        raise ConfigError("data.features=on: not possible here", got=why_not, do="use auto, or off")
    if features == "auto" and not why_not and not on_cpu and feature_bytes > pixel_bytes:
        why_not = f"features would be {feature_bytes / pixel_bytes:.1f} times as large as pixels"
    if not why_not and (features == "on" or uses >= WORTH):
        by |= {
            "torch": str(torch.__version__), "device": trainer.strategy.root_device.type,
            "precision": str(cfg["trainer"]["precision"]), "attention": backbone.base().config._attn_implementation,
            "weights": _digest(parts), "config": _vision_config(backbone),
        }  # fmt: skip
        why = f"the vision half does not train, and each frame is used {uses:.1f} times"
        return Kept("features", why, feature_bytes), json.dumps(by, sort_keys=True, default=str)
    if pixels == "on" or (pixels == "auto" and uses >= WORTH):
        why = f"each frame is used {uses:.1f} times; no features: {why_not}"
        return Kept("pixels", why, pixel_bytes), json.dumps(by, sort_keys=True, default=str)
    why = "data.encoded=off" if pixels == "off" else f"each frame is used {uses:.1f} times only"
    return Kept("nothing", f"{why}; no features: {why_not}" if why_not else why), ""


def _torchvision() -> str | None:
    """The version of what resizes in some processors."""
    try:
        return importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None


def _vision_config(backbone: HFBackbone) -> Any:
    config: Any = getattr(backbone.base().config, "vision_config", None)
    return None if config is None else config.to_dict()


def _no_pixels(cfg: Config, module: VLMModule) -> str:
    """Why what is made of a frame differs from time to time, or is not known apart; empty if it does not."""
    options, encoder = cfg["data"], module.backbone.encoder
    if not isinstance(module.backbone, HFBackbone) or getattr(encoder, "apart", None) is None:
        return "this model does not take frames as pictures of their own"
    if options.get("augmentation"):
        return "data.augmentation changes frames each time"
    if options.get("pixels") == "off":
        return "data.pixels=off: all frames are grey"
    return ""


def _try_features(
    cfg: Config, backbone: HFBackbone, made: EncodedFrames, trainer: pl.Trainer
) -> tuple[str, int, list[nn.Module]]:
    """Why features cannot be kept (empty if they can), their bytes a frame, and the modules that make them."""
    if not backbone.encoder.frames_apart:
        return "the family mixes frames before the language model", 0, []
    if str(cfg["trainer"]["precision"]) in ("bf16-true", "16-true", "64-true"):
        return f"trainer.precision={cfg['trainer']['precision']} casts the weights later", 0, []
    if str(cfg["trainer"]["strategy"]).startswith("fsdp"):
        return f"trainer.strategy={cfg['trainer']['strategy']} shards the weights later", 0, []
    backbone.to(trainer.strategy.root_device)
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in backbone.modules()]
    training = backbone.training
    try:
        backbone.train()  # what is drawn at random would differ
        first, second = (features_of(backbone, made, trainer) for _ in range(2))
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    if any(p.requires_grad for m in called for p in m.parameters()):
        return "parts of the vision half or the connector train", 0, []
    if any(not np.array_equal(a, second.arrays[n]) for n, a in first.arrays.items()):
        return "the vision half draws at random while it trains (dropout)", 0, []
    return "", _bytes(first), called


def features_of(backbone: HFBackbone, made: EncodedFrames, trainer: pl.Trainer) -> EncodedFrames:
    """What the vision half and the connector make of encoded frames, as the trainer computes it."""
    encoder = backbone.encoder
    assert isinstance(encoder, HFEncoder)
    assert encoder.apart is not None
    inputs = {**encoder.apart.about([made]), **encoder.apart.tensors([made])}
    device = trainer.strategy.root_device
    moved = {k: v.to(device) for k, v in inputs.items() if torch.is_tensor(v)}
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        found = backbone.encode_frames([{**backbone.ready(moved), "num_frames": len(made)}])  # type: ignore[dict-item]
    arrays = {n: a for n, a in made.arrays.items() if n not in PIXELS}
    return EncodedFrames(arrays | {FEATURES + n: _as_array(v) for n, v in found.items()})


def _as_array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu().contiguous()
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def _bytes(made: EncodedFrames) -> int:
    return sum(a.itemsize if not any(a.strides) else a[0].nbytes for a in made.arrays.values())


def _digest(parts: Sequence[nn.Module]) -> str:
    """SHA-256 of all parameters and buffers of some modules."""
    found, known = hashlib.sha256(), set[int]()
    for part in parts:
        for name, value in (*part.named_parameters(), *part.named_buffers()):
            if id(value) not in known:
                known.add(id(value))
                data = value.detach().cpu().contiguous()
                found.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
                found.update(data.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_frame(data: Data) -> np.ndarray | None:
    for clip in data.manifest.clips:
        if "failed" not in clip.extra and len(data.times.get(clip.clip_id, ())):
            try:
                return data.store.frames(Path(clip.path), data.times[clip.clip_id][:1])[0]
            except DataError:
                continue
    return None


def _uses(cfg: Config, data: Data, module: VLMModule) -> float:
    """How often the sweep uses a frame, in the mean over all frames that it asks for."""
    options, trainer = cfg["data"], cfg["trainer"]
    train, val = len(module.usable(data.samples["train"])), len(data.samples["val"])
    batches = -(-train // int(options["batch_size"])) or 1
    steps = trainer["max_steps"] or batches * int(trainer["max_epochs"])
    trained = bool(module.trained_state()) and not trainer["skip_fit"] and bool(steps)
    seen = int(steps) * int(options["batch_size"]) if trained else 0
    checks = max(int(steps) // int(trainer["val_every_n_steps"] or batches), 1) if trained else 0
    samples = seen + val * checks + len(evaluation_samples(cfg, data))
    points = [int(p.get("num_frames", options["num_frames"])) for p in (cfg.get("sweep") or {}).get("grid") or [{}]]
    distinct = sum(len(t) for t in data.times.values())
    return samples * sum(points) / max(distinct, 1)
