"""The manifest: the validated table of clips, their groups and splits, and what was left out.

An importer (``dashvlm.data.formats``) yields rows; everything after it is the same for every
dataset. A row that cannot be used is kept in the quarantine with its reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from dashvlm.data.clip import SPLITS, Clip, Split
from dashvlm.data.frames import FrameStore
from dashvlm.data.pictures import confined_files, sources_of
from dashvlm.data.rows import Row, checked_row
from dashvlm.data.sampling import stable_uniform
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety.checksums import content_of
from dashvlm.safety.plaintext import cells

log = logging.getLogger(__name__)

SCHEMA = pa.DataFrameSchema(
    {
        "clip_id": pa.Column(str, unique=True),
        "path": pa.Column(str),
        "group": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "label": pa.Column("Int64", pa.Check.isin([0, 1]), nullable=True),
        "event_time_s": pa.Column(float, pa.Check.ge(0), nullable=True),
        "alert_time_s": pa.Column(float, pa.Check.ge(0), nullable=True),
        "duration_s": pa.Column(float, pa.Check.gt(0)),
        "fps": pa.Column(float, pa.Check.gt(0)),
    },
    coerce=True,
)


@dataclass(frozen=True)
class Quarantined:
    """A row or clip that is not used, and why."""

    clip_id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset.

    Attributes:
        name: the dataset's name.
        clips: usable clips; those of val and test whose video is damaged are here too, with
            ``extra["failed"]`` holding the reason, because such rows are scored as failed.
        quarantine: rows that are not used, with the reason.
    """

    name: str
    clips: tuple[Clip, ...]
    quarantine: tuple[Quarantined, ...] = field(default=())

    def split(self, name: Split) -> list[Clip]:
        """Return the clips of one split, in a fixed order."""
        return [clip for clip in self.clips if clip.split == name]

    def table(self) -> pd.DataFrame:
        """Return the manifest as a validated table, one row a clip."""
        frame = pd.DataFrame([_table_row(clip) for clip in self.clips], columns=list(SCHEMA.columns))
        return SCHEMA.validate(frame, lazy=True)


def build_manifest(
    name: str,
    rows: Iterable[Row],
    root: Path,
    store: FrameStore,
    splits: Mapping[str, float],
    seed: int,
    split_by: str = "group",
    force_row_split: bool = False,
    max_bad_fraction: float = 0.02,
    require_videos: bool = True,
) -> Manifest:
    """Turn an importer's rows into a manifest: check, probe the videos, split by group.

    Args:
        name: the dataset's name.
        rows: what the importer yields.
        root: folder that all videos must lie in.
        store: remembers the videos' indices.
        splits: fraction of clips per split, used for rows that bring no split.
        seed: of the split.
        split_by: ``group``, or ``row`` (which needs ``force_row_split``).
        force_row_split: accept that one group straddles splits.
        max_bad_fraction: largest fraction of rows that may be quarantined.
        require_videos: quarantine training rows whose video is missing; a dataset card does not.

    Raises:
        DataError: if no row is usable, too many are not, ids repeat, or groups straddle splits.
    """
    if split_by == "row" and not force_row_split:
        raise ConfigError(
            "data.split_by=row puts clips of one recording on both sides of the split",
            do="use data.split_by=group, or add data.force_row_split=true to accept the leak",
        )
    clips: list[Clip] = []
    bad: list[Quarantined] = []
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        seen[str(row["clip_id"])] += 1
        if seen[str(row["clip_id"])] > 1:
            row = {**row, "problem": "duplicate id; the first row is used"}
        try:
            made = _clip(row, root, store)
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            # Whatever a row contains, it is named and not a traceback.
            made = Quarantined(str(row["clip_id"]), str(row.get("split") or ""), f"unusable: {error}")
        if isinstance(made, Clip):
            clips.append(made)
        else:
            bad.append(made)
    total = len(clips) + len(bad)
    if not clips:
        reasons = "; ".join(f"{q.clip_id}: {q.reason}" for q in bad[:3]) or "the file has no rows"
        raise DataError(f"data={name}: no usable clip of {total}", got=reasons, do=_inspect(name))
    if require_videos and all("failed" in clip.extra for clip in clips):
        raise DataError(
            f"data={name}: not one of {len(clips)} videos or pictures can be read", got=str(clips[0].extra["failed"]),
            do=f"put them below {root}, where the rows say; `dashvlm.inspect data={name}` needs the rows only",
        )  # fmt: skip
    clips = _assign_splits(clips, splits, seed, by_group=split_by == "group")
    # Which split a damaged clip would have had is unknown only if its row did not say.
    failed = [c for c in clips if "failed" in c.extra and c.split == "train" and require_videos]
    bad += [Quarantined(c.clip_id, "train", str(c.extra["failed"])) for c in failed]
    gone = {clip.clip_id for clip in failed}
    clips = [clip for clip in clips if clip.clip_id not in gone]
    if len(bad) > max_bad_fraction * total:
        raise DataError(
            f"data={name}: {len(bad)} of {total} rows are unusable, "
            f"more than data.max_bad_fraction={max_bad_fraction:g} allows",
            got="; ".join(f"{q.clip_id}: {q.reason}" for q in bad[:3]),
            do=f"mend them, or raise data.max_bad_fraction; {_inspect(name)}",
        )
    if not force_row_split:
        _refuse_straddling(name, clips)
    return Manifest(name, tuple(clips), tuple(bad))


def fingerprint(manifest: Manifest) -> str:
    """Hash what a result depends on: ids, groups, splits, labels, times, texts and the files' content."""
    rows = [
        [
            c.clip_id,
            c.group,
            c.split,
            c.label,
            c.event_time_s,
            c.alert_time_s,
            c.extra,
            [content_of(f)[2] for f in sources_of(Path(c.path))] if c.path else [],
        ]
        for c in sorted(manifest.clips, key=lambda c: c.clip_id)
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]


def leakage_report(manifest: Manifest, seed: int) -> dict[str, Any]:
    """Say what the splits share, and what a split by row would have shared.

    Returns:
        Counts of clips, groups and positives a split; groups and files (or copies) in several splits; fractions of
        test clips (validation clips where there are none) whose group, and whose very video, a row split of the
        same sizes would have put into training too; None where that cannot be computed.
    """
    groups: dict[str, set[str]] = {s: {c.group for c in manifest.split(s)} for s in SPLITS}
    sizes = {s: len(manifest.split(s)) for s in SPLITS}
    scored = sizes["test"] or sizes["val"]  # results come from the test split, or from val where there is none
    shuffled = sorted(manifest.clips, key=lambda c: stable_uniform(seed, "row split", c.clip_id))
    first = shuffled[: sizes["train"]]
    train, videos = {c.group for c in first}, {c.path for c in first if c.path and "failed" not in c.extra}
    test = shuffled[len(shuffled) - scored :] if first else []
    return {
        "clips": sizes,
        "groups": {s: len(g) for s, g in groups.items()},
        "training_groups": sorted(groups["train"]),
        "positives": {s: sum(c.label == 1 for c in manifest.split(s)) for s in SPLITS},
        "groups_in_several_splits": sorted(
            set().union(*(groups[a] & groups[b] for a in SPLITS for b in SPLITS if a < b))
        ),
        "files_in_several_splits": straddling_files(manifest.clips),
        "row_split_would_share": sum(c.group in train for c in test) / len(test) if test else None,
        "row_split_would_share_video": sum(c.path in videos for c in test) / len(test) if test and videos else None,
    }


def same_contents(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Return groups of clips whose different files hold the same bytes."""
    by_size: dict[int, list[Clip]] = defaultdict(list)
    for clip in {c.path: c for c in clips}.values():  # questions about one video share it on purpose
        if clip.path and Path(clip.path).is_file():
            by_size[Path(clip.path).stat().st_size].append(clip)
    by_hash: dict[str, list[Clip]] = defaultdict(list)
    for same in by_size.values():
        ends: dict[str, list[Clip]] = defaultdict(list)
        for clip in same if len(same) > 1 else []:
            ends[content_of(Path(clip.path))[2]].append(clip)
        for clip in (c for alike in ends.values() if len(alike) > 1 for c in alike):
            with Path(clip.path).open("rb") as file:
                by_hash[hashlib.file_digest(file, "sha256").hexdigest()].append(clip)
    return [found for found in by_hash.values() if len(found) > 1]


def straddling_files(clips: Sequence[Clip]) -> list[str]:
    """Files, or copies of one file, that clips of several splits look at."""
    usable = [c for c in clips if c.path and "failed" not in c.extra]
    by_path: dict[str, list[Clip]] = defaultdict(list)
    for clip in usable:
        by_path[clip.path].append(clip)
    shared = [a for a in (*by_path.values(), *same_contents(usable)) if len({c.split for c in a}) > 1]
    return sorted(" = ".join(sorted({f"{c.split}/{Path(c.path).name}" for c in alike})) for alike in shared)


def limited(manifest: Manifest, count: int) -> Manifest:
    """Keep so many clips of each split, of all labels in turn (``data.limit``)."""
    kept: list[Clip] = []
    for split in SPLITS:
        order = sorted(manifest.split(split), key=lambda c: stable_uniform(0, "limit", c.clip_id))
        ones, others = [c for c in order if c.label == 1], [c for c in order if c.label != 1]
        kept += [*ones[: count // 2], *others][:count] if ones and others else order[:count]
    names = {c.clip_id for c in kept}
    return Manifest(manifest.name, tuple(c for c in manifest.clips if c.clip_id in names), manifest.quarantine)


def write_ledgers(manifest: Manifest, report: Mapping[str, Any], folder: Path) -> None:
    """Write ``quarantine.csv`` and ``leakage.json`` into a run's folder."""
    frame = pd.DataFrame([vars(q) for q in manifest.quarantine], columns=["clip_id", "split", "reason"])
    cells(frame).to_csv(folder / "quarantine.csv", index=False)
    (folder / "leakage.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _clip(row: Row, root: Path, store: FrameStore) -> Clip | Quarantined:
    clip_id, given = str(row["clip_id"]), row.get("split")
    if given is not None and given not in SPLITS:
        return Quarantined(clip_id, str(given), f"unknown split {given!r}")
    if row.get("problem"):
        return Quarantined(clip_id, str(given or ""), str(row["problem"]))
    label, event, alert, wrong = checked_row(row)
    if wrong:
        return Quarantined(clip_id, str(given or ""), wrong)
    extra = dict(row.get("extra") or {})
    extra |= {k: row[k] for k in ("question", "choices") if row.get(k)}
    path, duration, fps = "", 1.0, 1.0
    try:
        if row.get("failed"):
            raise DataError(str(row["failed"]))
        path = str(confined_files(root, row["video"]))
        index = store.index(Path(path))
        duration, fps = index.duration_s, index.fps
        extra |= {"video_streams": index.streams} if index.streams > 1 else {}
        late = [t for t in extra.get("support_frames") or () if t > duration]
        if late:
            told = f"support times past the end, at {duration:.2f} s: {late}"
            extra["irregular"] = [*extra.get("irregular", ()), told]
    except (DataError, OSError) as error:  # a name may be too long for the file system
        extra["failed"] = str(error).splitlines()[0]
    if "failed" not in extra and event is not None and event > duration + 1.0 / fps:
        return Quarantined(clip_id, str(given or ""), f"event at {event:g} s, but the clip ends at {duration:g} s")
    # A placeholder split for rows without one: _assign_splits replaces it.
    group = str(row.get("group") or clip_id)
    clip = Clip(clip_id, path, group, "train", label, event, alert, duration, fps, extra)
    return replace(clip, split=given) if given else replace(clip, extra={**extra, "_unsplit": True})


def _assign_splits(clips: list[Clip], fractions: Mapping[str, float], seed: int, by_group: bool) -> list[Clip]:
    """Split by group, balancing the classes, in an order that depends on seed and names only.

    Where rows say that they are the test, no other row joins them: a published test stays what was published.
    """
    units: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.extra.get("_unsplit"):
            units[clip.group if by_group else clip.clip_id].append(clip)
    total = sum(len(members) for members in units.values())
    own_test = any(c.split == "test" and not c.extra.get("_unsplit") for c in clips)
    wanted = {s: fractions.get(s, 0.0) * total * (s != "test" or not own_test) for s in SPLITS}
    if not sum(wanted.values()):
        wanted["train"] = float(total)
    count = dict.fromkeys(SPLITS, 0.0)
    positives = dict.fromkeys(SPLITS, 0.0)
    rate = sum(c.label == 1 for m in units.values() for c in m) / max(total, 1)
    order = sorted(units, key=lambda unit: stable_uniform(seed, "split", unit))
    chosen: dict[str, Split] = {}
    for unit in sorted(order, key=lambda unit: -len(units[unit])):
        size, ones = len(units[unit]), sum(c.label == 1 for c in units[unit])

        def cost(split: Split, size: int = size, ones: int = ones) -> float:
            if wanted[split] <= 0:
                return math.inf
            full = (count[split] + size) / wanted[split]
            skew = abs(positives[split] + ones - rate * (count[split] + size)) / wanted[split]
            return full + skew

        best = min(SPLITS, key=cost)
        chosen[unit] = best
        count[best] += size
        positives[best] += ones
    out = []
    for clip in clips:
        if clip.extra.get("_unsplit"):
            extra = {k: v for k, v in clip.extra.items() if k != "_unsplit"}
            unit = clip.group if by_group else clip.clip_id
            clip = replace(clip, split=chosen[unit], extra=extra)
        out.append(clip)
    return out


def _refuse_straddling(name: str, clips: Sequence[Clip]) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        seen[clip.group].add(clip.split)
    shared = sorted(group for group, splits in seen.items() if len(splits) > 1)
    if shared:
        raise DataError(
            f"data={name}: {len(shared)} groups have clips in more than one split",
            got=", ".join(shared[:5]),
            do="move each group to one split, or add data.force_row_split=true to accept the leak",
        )


def _table_row(clip: Clip) -> dict[str, Any]:
    return {key: getattr(clip, key) for key in SCHEMA.columns}


def _inspect(name: str) -> str:
    return f"`python -m dashvlm.inspect data={name}` lists every row"
