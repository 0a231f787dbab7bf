"""From a configuration to live objects, one function an object. Imports no Hydra."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from dashvlm.backbones.adapters import apply_peft, count_parameters, enable_gradient_checkpointing, load_trained
from dashvlm.backbones.base import Backbone
from dashvlm.backbones.hf import check_family
from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.config.imports import construct, resolve
from dashvlm.data.anchors import STREAM
from dashvlm.data.clip import Sample
from dashvlm.errors import CheckpointError, ConfigError
from dashvlm.safety.checksums import changed as changed_files
from dashvlm.safety.checksums import verify_weights
from dashvlm.safety.files import is_name, read_yaml
from dashvlm.tasks.base import Task, make_task
from dashvlm.tasks.check import check
from dashvlm.training.checkpoints import load_weights
from dashvlm.training.module import VLMModule

log = logging.getLogger(__name__)
Config = Mapping[str, Any]
"""A resolved configuration of plain Python values."""


def build_backbone(cfg: Config, quantization: str | None = None) -> Backbone:
    """Load the backbone; ``tiny`` builds its random-weight twin on first use.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded.
    """
    model = cfg["model"]
    checkpoint, image_kwargs = str(model["checkpoint"]), model["image_kwargs"]
    if checkpoint == "tiny":
        cache = Path(cfg["paths"]["cache_dir"]) / "twins"
        checkpoint = str(twin_folder(twin_of(model), cache))
        image_kwargs = twin_of(model).get("image_kwargs", image_kwargs)
    else:
        checkpoint = checkpoint_name(model)
    options = model.get("loader_options") or {}
    if model["name"] == "llama32_vision" and options.get("frames") == "images":
        log.warning(
            "Llama 3.2 Vision was trained on one image a prompt: several frames are outside its training and scores "
            "depend on the number of frames in the batch; model.loader_options.frames=contact_sheet avoids both"
        )
    dtype = str(model["dtype"])
    if dtype == "auto" and cfg["peft"]["method"] == "full" and cfg["trainer"]["precision"] != "bf16-true":
        dtype = "float32"  # small updates of 16-bit weights round to nothing; autocast still computes in 16 bit
    kind = twin_of(model).get("config", {}).get("class", "") if model.get("twin") else ""
    if str(model["checkpoint"]) != "tiny" and hasattr(transformers, kind):
        check_family(checkpoint, getattr(transformers, kind).model_type, model.get("revision"))
    backbone: Backbone = construct(
        "backbone",
        model["_target_"],
        checkpoint,
        image_kwargs=image_kwargs,
        roles=model["roles"],
        dtype=dtype,
        quantization=quantization,
        attn_implementation=model["attn_implementation"],
        **({"revision": model["revision"]} if model.get("revision") else {}),
        **options,
    )
    return backbone


def checkpoint_name(model: Config) -> str:
    """The hub id or folder of ``model.checkpoint``, which may name one of the family's sizes."""
    checkpoint = str(model["checkpoint"])
    return str((model.get("sizes") or {}).get(checkpoint, checkpoint))


def build_module(cfg: Config, for_training: bool = True) -> VLMModule:
    """Build backbone, adapters, task and objective; weights of adapters depend on the seed only."""
    peft = cfg["peft"]
    backbone = build_backbone(cfg, peft.get("quantization"))
    torch.manual_seed(int(cfg["seed"]))
    apply_peft(backbone, peft)
    if for_training and cfg["model"]["gradient_checkpointing"]:
        enable_gradient_checkpointing(backbone)
    module: VLMModule = resolve("objective", cfg["objective"]["_target_"])(
        backbone, make_task(cfg), cfg["objective"], cfg["optim"], int(cfg["seed"])
    )
    if cfg.get("start_from") and for_training:
        _start(module, Path(cfg["start_from"]))
    module.on_start()
    for row in count_by_part(module):
        log.info(
            "%-10s %14s parameters, %12s trainable",
            row["part"], f"{row['parameters'] + row['adapters']:,}", f"{row['trainable']:,}",
        )  # fmt: skip
    return module


def _start(module: VLMModule, folder: Path) -> None:
    """Put the weights of another run into a module."""
    path = folder / "trained.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"start_from={folder} has no trained.safetensors",
            do="name the folder of a finished run; what starts from it is also measured against it",
        )
    verify_weights(folder)
    load_trained(module, read_safetensors(path), f"start_from={folder}")
    log.info("starting from %s", folder)


def count_by_part(module: VLMModule) -> list[dict[str, Any]]:
    """Count a module's parameters by role, the objective's own layers included."""
    own = {n: m for n, m in module.named_children() if n != "backbone"}
    return count_parameters(module.backbone, own)


def at_home(folder: Path, cfg: Config, paths: Config) -> dict[str, Any]:
    """A run's configuration on this machine, checked: its own places and its limits of the store are not used.

    Raises:
        ConfigError: if it breaks a rule.
    """
    lacking = [
        g for g in ("model", "task", "data", "objective", "peft", "trainer") if not isinstance(cfg.get(g), Mapping)
    ]
    errors = [f"{group}: missing" for group in lacking] or check({**cfg, "study": None})  # may not be here
    if errors:
        raise ConfigError(
            f"{folder}/config.yaml cannot be used", got="\n       ".join(errors),
            do="copy the run's folder again from where it was made",
        )  # fmt: skip
    data = {
        "anchors": "event",
        "stream": dict(STREAM),
        **cfg["data"],
        "store_gb": float("inf"),
        "decode_timeout_s": 60.0,
        "decode_memory_gb": 8.0,
    }
    if str(data.get("importer")) == "dashvlm.data.formats.synthetic.rows":  # it is rendered where it is missing
        name = Path(str(data["root"])).name
        data["root"] = str(Path(paths["cache_dir"]) / "synthetic" / (name if is_name(name) else "unnamed"))
    return {**cfg, "paths": dict(paths), "data": data}


def load_run(
    folder: Path, paths: Config, changed: Config | None = None, checkpoint: str | None = None
) -> tuple[dict[str, Any], VLMModule]:
    """Load a finished run: its configuration and its module with the trained weights.

    Args:
        folder: the run's.
        paths: the ``paths`` group of the command. A run may come from somebody else, so the places that its own
            configuration names are not used.
        changed: its configuration with what an evaluation asks differently (task, generation).
        checkpoint: name of a file of its ``checkpoints/``, instead of the weights that it ended with.

    Raises:
        ConfigError: if the folder is not a run's, or has no such checkpoint.
        CheckpointError: if its weights are missing or do not fit.
    """
    cfg = {**changed, "paths": dict(paths)} if changed else at_home(folder, read_config(folder), paths)
    path = folder / "trained.safetensors"
    if cfg["model"]["_target_"] == "dashvlm.backbones.api.load":  # its address would get this user's key and pictures
        raise ConfigError(f"{folder} names a model behind an endpoint", do="use `evaluate model=openai` without run=")
    if not path.is_file() and not checkpoint:
        raise CheckpointError(
            f"{folder} has no trained.safetensors",
            got="the run is not finished",
            do="run the command that made it again: it resumes",
        )
    verify_weights(folder)
    if other := changed_files(folder):
        log.warning("%s: changed after the run: %s", folder, ", ".join(other))
    module = build_module(cfg, for_training=False)
    start = folder / "start.safetensors"
    if start.is_file():  # what the run is measured against
        load_trained(module, read_safetensors(start), str(start))
        module.on_start()
    if checkpoint:
        path = checkpoint_file(folder, checkpoint)
        load_trained(module, load_weights(path), str(path))
    else:
        load_trained(module, read_safetensors(path), str(path))
    module.eval()
    return cfg, module


def checkpoint_file(folder: Path, name: str) -> Path:
    """A checkpoint of a run by its name, with or without ``.ckpt``.

    Raises:
        ConfigError: if there is none.
    """
    known = {p.stem: p for p in sorted((folder / "checkpoints").glob("*.ckpt"))}
    found = known.get(name.removesuffix(".ckpt"))
    if found is None:
        raise ConfigError(
            f"{folder} has no checkpoint {name}", got=f"there are {', '.join(known) or 'none'}",
            do="name one of these; callbacks.checkpoint.keep=all keeps one for each validation",
        )  # fmt: skip
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved configuration that a run was started with.

    Raises:
        ConfigError: if the folder holds none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in folder.parent.glob("*/config.yaml"))
        raise ConfigError(
            "not a run folder",
            got=str(folder),
            do=f"name a folder with a config.yaml; beside it are {', '.join(known) or 'none'}",
        )
    return read_yaml(path)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors from a safetensors file.

    Raises:
        CheckpointError: if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read", got=str(error)) from error


def label_balance(task: Task, samples: Sequence[Sample]) -> str:
    """Say how many samples there are, of each choice where the task has choices."""
    if not task.choices:
        return f"{len(samples)} samples"
    targets = [task.target(s) for s in samples]
    return ", ".join(f"{targets.count(n)} {name}" for n, name in enumerate(task.choices))
