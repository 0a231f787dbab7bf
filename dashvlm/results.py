"""``result.json`` and ``config.yaml``: written whole or not at all, with null for what is not defined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    _write(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML atomically."""
    _write(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def own(path: Path) -> Path:
    """A place to write to: a link that lies there, perhaps a stranger's, is taken away and not followed."""
    if path.is_symlink():
        path.unlink()
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    if isinstance(node, np.generic):
        node = node.item()
    return None if isinstance(node, float) and not np.isfinite(node) else node
