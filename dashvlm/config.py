"""Configuration: where it lives, what a command line may say about it, and all errors at once.

Together with the verbs and ``sweep`` the only place that imports Hydra. Loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dashvlm.errors import ConfigError
from dashvlm.rules import flatten, near

CONF = Path(__file__).resolve().parent.parent / "conf"
FLAGS = ("-m", "--multirun")


def flags_first(argv: Sequence[str]) -> list[str]:
    """Move ``-m`` to the front: Hydra 1.3 does not parse flags between overrides.

    Example:
        >>> flags_first(["model=a", "-m", "data.num_frames=5,10"])
        ['-m', 'model=a', 'data.num_frames=5,10']
    """
    return [a for a in argv if a in FLAGS] + [a for a in argv if a not in FLAGS]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a configuration to plain Python values, without Hydra's own node."""
    node = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(node, dict)
    return {str(k): v for k, v in node.items() if k != "hydra"}


def check_overrides(name: str, overrides: Sequence[str]) -> None:
    """Check group choices and keys of a command line before Hydra does, to report all at once.

    Raises:
        ConfigError: listing every unknown group option and key with near names.
    """
    from hydra import compose

    errors: list[str] = []
    kept: list[str] = []
    keys: list[tuple[str, str]] = []
    groups = {p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()}
    for override in overrides:
        match = re.match(r"^([~+]*)([\w./@-]+)(?:=(.*))?$", override, re.DOTALL)
        if not match:
            continue
        prefix, key, value = match.groups()
        group = key.split("@")[0]
        if group in groups and value is not None:
            known = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
            plugged = group in ("hydra/launcher", "hydra/sweeper")
            options = [v.strip() for v in re.split(r",(?![^\[({]*[\])}])", value)]
            wrong = [v for v in options if v not in known and v != "null" and not v.startswith(("glob(", "choice("))]
            if wrong and not plugged and "[" not in value:
                errors.append(f"{key}={wrong[0]}: unknown; the choices are {', '.join(known)}{near(wrong[0], known)}")
            elif not plugged and "(" not in value:
                kept.append(f"{prefix}{key}={options[0]}")
        elif not prefix.startswith("+") and not key.startswith("hydra"):
            keys.append((override, key))
    if not errors or keys:
        try:
            flat = flatten(plain_nodes(compose(name, overrides=kept)))
        except Exception:
            flat = {}  # Hydra's own message will say why
        nodes = {k.rsplit(".", i)[0] for k in flat for i in range(k.count(".") + 1)}
        for override, key in keys:
            if flat and key not in nodes:
                hint = near(key, sorted(nodes)) or "; with this choice of groups; a new key needs a leading +"
                errors.append(f"{override}: there is no key {key}{hint}")
    if errors:
        raise ConfigError(
            f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the command line",
            got="\n       ".join(errors),
            do=f"see `python -m dashvlm.{Path(name).stem} --help`",
        )


def plain_nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration's nodes without resolving them."""
    node = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(node, dict)
    return {str(k): v for k, v in node.items()}


def refuse(errors: Iterable[str]) -> None:
    """Raise one ConfigError with all errors, if there are any."""
    found = list(dict.fromkeys(errors))
    if found:
        raise ConfigError(
            f"{len(found)} error{'s' if len(found) > 1 else ''} in the configuration",
            got="\n       ".join(found),
            do="change these values; `--cfg job` prints the whole configuration",
        )
