"""Several datasets in one run, with shares of what is trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.find import CONF, choices_of, own_conf
from dashvlm.config.imports import configurable, resolve
from dashvlm.config.rules import near
from dashvlm.data.clip import SPLITS
from dashvlm.data.rows import Row, read_rows
from dashvlm.data.sampling import stable_uniform
from dashvlm.errors import DataError
from dashvlm.safety.files import read_yaml

log = logging.getLogger(__name__)


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of all parts; names, groups and files are told apart by the part's name.

    Where shares are given, training rows are left out of the parts that have too many, drawn by their names, until
    the shares hold to the row; validation and test rows all stay. A row that is unusable counts for nothing. Rows
    without a split get one by their group.

    Args:
        root: the folder that holds the parts' folders.
        options: ``parts``: name -> ``format`` (a dataset, by default the name), ``folder`` (below the root, by
            default the name), ``share`` of the training rows (of all parts, or of none) and ``options``, as the
            dataset's own; ``splits``: shares of the splits.

    Raises:
        DataError: if parts, shares or options are not as above, or a part is not there.
    """
    parts = options.get("parts")
    if not isinstance(parts, Mapping) or len(parts) < 2 or not all(isinstance(p, Mapping) for p in parts.values()):
        raise DataError(
            "data=mix needs two parts or more", got=f"data.options.parts={str(parts)[:200]}",
            do="data.options.parts='{a: {format: bvpi, folder: bvpi, share: 0.7}, b: {format: messages, share: 0.3}}'",
        )  # fmt: skip
    shares = {name: part.get("share") for name, part in parts.items()}
    given = [s for s in shares.values() if s is not None]
    if any(isinstance(s, bool) or not isinstance(s, int | float) or not s > 0 for s in given):
        raise DataError("data=mix: a share is a number above 0", got=str(shares), do="such as share: 0.7")
    if given and len(given) < len(parts):
        raise DataError("data=mix: shares are for all parts or for none", got=str(shares), do="give each part one")
    found = {n: [_with_split(r, options) for r in _part(root, str(n), p)] for n, p in parts.items()}
    for name, mine in found.items():
        yield from _kept(name, mine, found, {k: float(v) for k, v in shares.items()} if given else {})


def _part(root: Path, name: str, part: Mapping[str, Any]) -> Iterator[Row]:
    unknown = sorted(set(part) - {"format", "folder", "share", "options"})
    folder, kind = str(part.get("folder") or name), str(part.get("format") or name)
    below = (root / folder).resolve()
    if unknown or not below.is_dir() or not below.is_relative_to(root.resolve()):
        raise DataError(
            f"data=mix: part {name}",
            got=f"unknown {', '.join(unknown)}" if unknown else f"no folder {folder} below {root}",
            do="format, folder, share and options; folder lies below data.root",
        )
    for row in read_rows(resolve("importer", dataset(kind)["importer"]), root / folder, options_of(name, kind, part)):
        named = {**row, "clip_id": f"{name}/{row['clip_id']}"}
        video = row.get("video")
        if video:
            named["video"] = f"{folder}/{video}" if isinstance(video, str) else [f"{folder}/{v}" for v in video]
        if row.get("group"):
            named["group"] = f"{name}/{row['group']}"
        extra = dict(row.get("extra") or {})
        extra["slices"] = {**(extra.get("slices") or {}), "part": name}
        yield {**named, "extra": extra}


def dataset(kind: str) -> dict[str, Any]:
    """The configuration of a dataset by its name, ours or the user's own.

    Raises:
        DataError: if there is none.
    """
    names = sorted(set(choices_of("data")) - {"base", "mix", "synthetic"})
    places = [place / "data" / f"{kind}.yaml" for place in (own_conf(), CONF) if place]
    path = next((p for p in places if kind in names and p.is_file()), None)
    if path is None:
        raise DataError(f"data=mix: format {kind} is no dataset", do=f"use one of {', '.join(names)}")
    return dict(read_yaml(path))


def options_of(name: str, kind: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """A part's options on top of the dataset's own.

    Raises:
        DataError: for an option that the dataset has not.
    """
    known, given = dataset(kind), part.get("options") or {}
    own = {k: v for k, v in (known.get("options") or {}).items() if not str(v).startswith("${")}
    own |= {k: known[k] for k, v in (known.get("options") or {}).items() if v == f"${{data.{k}}}" and k in known}
    if not isinstance(given, Mapping) or set(given) - set(known.get("options") or {}):
        odd = next(iter(set(given) - set(known.get("options") or {})), "") if isinstance(given, Mapping) else given
        raise DataError(
            f"data=mix: part {name} has no option {odd}{near(str(odd), list(own))}",
            do=f"{kind} has {', '.join(sorted(known.get('options') or {}))}",
        )
    return {**own, **given}


def _with_split(row: Row, options: Mapping[str, Any]) -> Row:
    """A row with its split; one without gets it by its group, so that shares can be of training rows."""
    if row.get("split") or row.get("problem"):
        return row
    wanted = {s: float(v) for s, v in (options.get("splits") or {"train": 0.6, "val": 0.2, "test": 0.2}).items()}
    draw = stable_uniform(0, "mix split", str(row.get("group") or row["clip_id"])) * sum(wanted.values())
    for split in SPLITS:
        draw -= wanted.get(split, 0.0)
        if draw < 0:
            return {**row, "split": split}
    return {**row, "split": "test"}


def _kept(name: str, mine: list[Row], found: Mapping[str, list[Row]], shares: Mapping[str, float]) -> Iterator[Row]:
    """A part's rows, of those to train on only as many as its share."""
    trained = {k: [r for r in v if r.get("split") == "train" and not r.get("problem")] for k, v in found.items()}
    if shares and not all(trained.values()):
        lacking = [k for k, v in trained.items() if not v]
        raise DataError(
            f"data=mix: no training row in {', '.join(lacking)}", do="look at the part alone: dashvlm inspect data=..."
        )
    whole = min((len(v) * sum(shares.values()) / shares[k] for k, v in trained.items()), default=0) if shares else 0
    most = round(whole * shares[name] / sum(shares.values())) if shares else len(mine)
    drawn = sorted(trained[name], key=lambda r: stable_uniform(0, "mix", str(r["clip_id"])))[:most]
    log.info("part %s: %d of %d training rows", name, len(drawn), len(trained[name]))
    chosen = {id(r) for r in drawn}
    yield from (r for r in mine if id(r) in chosen or r.get("split") != "train" or r.get("problem"))
