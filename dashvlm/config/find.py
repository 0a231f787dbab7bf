"""Where configurations and studies lie: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

import os
from pathlib import Path

from dashvlm.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """The folder ``conf`` or ``experiments`` that belongs to this package."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONF = shipped("conf")
STUDIES = shipped("experiments")


def own_conf() -> Path | None:
    """The user's own folder of configurations: ``--config-dir FOLDER`` or the environment variable DASHVLM_CONF.

    Raises:
        ConfigError: if there is no such folder.
    """
    named = os.environ.get("DASHVLM_CONF")
    if named and not Path(named).is_dir():
        raise ConfigError(f"there is no folder {named}", do="name a folder laid out as conf/ is: task/NAME.yaml, ...")
    return Path(named).resolve() if named else None


def search_words() -> list[str]:
    """The word that makes Hydra look into the user's own folder too."""
    own = own_conf()
    return [f"hydra.searchpath=['file://{own}']"] if own else []


def choices_of(group: str) -> list[str]:
    """The names that a group offers, the user's own among them; ``base`` is what others build on."""
    places = [place for place in (CONF, own_conf()) if place is not None]
    return sorted({p.stem for place in places for p in (place / group).glob("*.yaml")} - {"base"})


def study_names(root: Path = STUDIES) -> list[str]:
    """All studies below a folder; none where there is no such folder."""
    return sorted(p.parent.name for p in root.glob("*/study.yaml"))
