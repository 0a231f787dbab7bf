"""``result.json``: written whole or not at all, with null for what is not defined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    if isinstance(node, np.generic):
        node = node.item()
    return None if isinstance(node, float) and not np.isfinite(node) else node
