"""Where configurations and studies lie: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """The folder ``conf`` or ``experiments`` that belongs to this package."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONF = shipped("conf")
STUDIES = shipped("experiments")


def study_names(root: Path = STUDIES) -> list[str]:
    """All studies below a folder; none where there is no such folder."""
    return sorted(p.parent.name for p in root.glob("*/study.yaml"))
