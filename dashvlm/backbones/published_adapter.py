"""Adapters that others trained and published in PEFT's format: loaded onto their base and merged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft

from dashvlm.errors import CheckpointError
from dashvlm.safety.files import read_json

CONFIG = "adapter_config.json"


def base_and_adapter(checkpoint: str, base: str | None = None) -> tuple[str, Path | None]:
    """What a checkpoint stands on: itself, or for a folder that holds an adapter only, its base.

    Args:
        checkpoint: hub id or folder.
        base: hub id or folder of the base, instead of the one that the adapter names.

    Returns:
        Hub id or folder of whole weights, and the adapter's folder or None.

    Raises:
        CheckpointError: if the adapter names no base.
    """
    folder = Path(checkpoint)
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return checkpoint, None
    named = base or read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder / CONFIG} names no base model", do="name it: +model.loader_options.base=ID")
    if named.startswith(("/", "./", "../", "~")) and not Path(named).expanduser().is_dir():
        raise CheckpointError(
            f"the base of the adapter in {folder} is not here", got=f"{CONFIG} names {named}",
            do="name a hub id or a folder that is: +model.loader_options.base=ID",
        )  # fmt: skip
    if not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise CheckpointError(f"{folder} has no adapter_model.safetensors", do="copy the whole folder of the adapter")
    return named, folder


def merged(net: Any, adapter: Path, quantization: str | None) -> Any:
    """A base with an adapter merged into its weights, as if it had been saved so.

    Raises:
        CheckpointError: if the adapter does not belong to the base, or the base is in 4 bit.
    """
    if quantization:
        raise CheckpointError(
            f"{adapter} is an adapter, which cannot be merged into 4-bit weights",
            got=f"peft.quantization={quantization}",
            do="leave the quantisation out: peft.quantization=null",
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)  # PEFT only warns of those
        try:
            return peft.PeftModel.from_pretrained(net, str(adapter)).merge_and_unload()
        except (UserWarning, ValueError, KeyError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"the adapter in {adapter} does not fit its base", got=str(error).strip().splitlines()[0][:300],
                do="name the base that it was trained on: +model.loader_options.base=ID",
            ) from error  # fmt: skip
