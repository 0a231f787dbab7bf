"""Several datasets in one run, with shares of what is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable, resolve
from dashvlm.data.rows import Row
from dashvlm.data.sampling import stable_uniform
from dashvlm.errors import DataError


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of all parts; names, groups and files are told apart by the part's name.

    Where shares are given, training rows are left out of the parts that have too many, drawn by their names, until
    the shares hold; validation and test rows all stay. A row that is unusable counts for nothing.

    Args:
        root: the folder that holds the parts' folders.
        options: ``parts``: name -> ``format`` (an importer, by default the name), ``folder`` (below the root, by
            default the name), ``share`` of the training rows (of all parts, or of none) and ``options``, as the
            dataset's own. ``slice_by_part``: numbers for each part.

    Raises:
        DataError: if parts or shares are not as above, or a part is not there.
    """
    parts = options.get("parts")
    if not isinstance(parts, Mapping) or len(parts) < 2 or not all(isinstance(p, Mapping) for p in parts.values()):
        raise DataError(
            "data=mix: data.options.parts names no parts", got=str(parts)[:200],
            do="data.options.parts='{a: {format: bvpi, folder: bvpi, share: 0.7}, b: {format: messages, share: 0.3}}'",
        )  # fmt: skip
    shares = {name: part.get("share") for name, part in parts.items()}
    given = [s for s in shares.values() if s is not None]
    if given and (len(given) < len(parts) or not all(isinstance(s, int | float) and s > 0 for s in given)):
        raise DataError("data=mix: shares are for all parts or for none", got=str(shares), do="numbers above 0")
    found = {name: list(_part(root, str(name), part)) for name, part in parts.items()}
    for name, mine in found.items():
        yield from _kept(name, mine, found, {k: float(v) for k, v in shares.items()} if given else {})


def _part(root: Path, name: str, part: Mapping[str, Any]) -> Iterator[Row]:
    unknown = sorted(set(part) - {"format", "folder", "share", "options"})
    folder = str(part.get("folder") or name)
    if unknown or not (root / folder).is_dir():
        raise DataError(
            f"data=mix: part {name}",
            got=f"unknown {', '.join(unknown)}" if unknown else f"no folder {folder} in {root}",
            do="format, folder, share and options; folder lies below data.root",
        )  # fmt: skip
    importer = resolve("importer", f"dashvlm.data.formats.{part.get('format') or name}.rows")
    for row in importer(root / folder, part.get("options") or {}):
        named = {**row, "clip_id": f"{name}/{row['clip_id']}"}
        video = row.get("video")
        if video:
            named["video"] = f"{folder}/{video}" if isinstance(video, str) else [f"{folder}/{v}" for v in video]
        if row.get("group"):
            named["group"] = f"{name}/{row['group']}"
        extra = dict(row.get("extra") or {})
        extra["slices"] = {**(extra.get("slices") or {}), "part": name}
        yield {**named, "extra": extra}


def _kept(name: str, mine: list[Row], found: Mapping[str, list[Row]], shares: Mapping[str, float]) -> Iterator[Row]:
    """A part's rows, of those to train on only as many as its share."""
    trained = {k: [r for r in v if r.get("split") == "train" and not r.get("problem")] for k, v in found.items()}
    if shares and not all(trained.values()):
        lacking = [k for k, v in trained.items() if not v]
        raise DataError(
            f"data=mix: no training row in {', '.join(lacking)}", do="shares need a split in the part's files"
        )
    whole = min((len(v) * sum(shares.values()) / shares[k] for k, v in trained.items()), default=0) if shares else 0
    most = round(whole * shares[name] / sum(shares.values())) if shares else len(mine)
    drawn = sorted(trained[name], key=lambda r: stable_uniform(0, "mix", str(r["clip_id"])))[:most]
    chosen = {id(r) for r in drawn}
    yield from (r for r in mine if id(r) in chosen or r.get("split") != "train" or r.get("problem"))
