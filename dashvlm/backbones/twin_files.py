"""The random-weight twin and the published dimensions of a model: its ``twin`` names a file here, or holds them itself.

Loads no torch: a sweep names its jobs before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError
from dashvlm.safety.checksums import checkpoint_fingerprint
from dashvlm.safety.files import is_name, read_yaml

FOLDER = Path(__file__).parent / "twins"


def twin_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The twin of a ``model`` group: classes, dimensions, tokenizer and processor settings.

    Raises:
        ConfigError: if the group has none, or names one that does not exist.
    """
    return _part(model, "twin")


def published_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Size -> published dimensions, and ``source``; empty if none are known."""
    if isinstance(model.get("published"), Mapping):
        return dict(model["published"])
    return _part(model, "published") if isinstance(model.get("twin"), str) else {}


def model_fingerprint(model: Mapping[str, Any]) -> dict[str, str]:
    """``fingerprint`` of the weights in a local ``model.checkpoint``, or of the twin; nothing for hub ids."""
    if str(model.get("checkpoint")) != "tiny":
        return checkpoint_fingerprint(model)
    text = json.dumps(twin_of(model), sort_keys=True, default=str)
    return {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _part(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    named = model.get("twin")
    if key == "twin" and isinstance(named, Mapping):
        return named
    if not isinstance(named, str) or not is_name(named) or not (FOLDER / f"{named}.yaml").is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ConfigError(
            f"model={model.get('name')} has no twin", got=f"model.twin={str(named)[:100]}",
            do=f"use model.checkpoint=FOLDER or a hub id; twins there are of {known}",
        )  # fmt: skip
    return dict(read_yaml(FOLDER / f"{named}.yaml")[key])
