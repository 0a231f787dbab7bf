"""What predictions are compared with: a dataset's rows, or a table of ids and right answers. No video is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashvlm.config.imports import resolve
from dashvlm.data.clip import SPLITS, Clip
from dashvlm.data.formats import bvpi
from dashvlm.data.formats.bvpi_build import SPLITS as SPLIT_NAMES
from dashvlm.data.rows import Row, checked_row
from dashvlm.errors import DataError
from dashvlm.tables.records import Records, common_key, read_records, text_of
from dashvlm.tasks.reading import Reading

IDS = ("id", "clip_id", "image", "image_path", "video_id", "image_id", "question_id", "video", "video_path",
       "file_name", "filename", "file", "sample_id", "name")  # fmt: skip
BLOCK = 25
"""Pictures with neighbouring numbers may be one walk: they are resampled together."""


@dataclass(frozen=True)
class Truth:
    """What is known of the clips.

    Attributes:
        clips: one a row that can be compared.
        source: where it is from, for tables.
        split: which split is scored; empty where the rows have none.
        train: clips of the training split, for baselines that need no pixels.
        notes: rows that cannot be compared, and why.
    """

    clips: tuple[Clip, ...]
    source: str
    split: str = ""
    train: tuple[Clip, ...] = ()
    notes: list[str] = field(default_factory=list)


def own_truth(reading: Reading, records: Records, options: Mapping[str, Any], taken: Sequence[str] = ()) -> Truth:
    """The right answers that a file of predictions brings itself.

    Args:
        reading: of the task.
        records: the predictions.
        options: as for :func:`read_truth`.
        taken: columns that hold predictions, which cannot be the truth too.

    Raises:
        DataError: if it has no such column.
    """
    return _truth(_table(reading, records, options, taken), str(records.path))


def read_truth(reading: Reading, path: Path, data: Mapping[str, Any], options: Mapping[str, Any]) -> Truth:
    """Read the truth from a file or a dataset's folder.

    Args:
        reading: of the task.
        path: a table of ids and right answers, a dataset's own file, or its folder.
        data: the ``data`` group, whose importer reads a folder.
        options: ``truth_columns`` (``id, target, group, split``), ``annotations`` (BVPI), ``encoding``.

    Raises:
        DataError: if it cannot be read.
    """
    if path.is_dir():
        if data["name"] == "nexar" and not (path / "train.csv").is_file() and list(path.glob("*.jsonl")):
            raise DataError(
                f"truth={path} holds JSON lines and no train.csv", got="data=nexar, the default of task=crash",
                do="add data=jsonl, or name one file: truth=FOLDER/test.jsonl",
            )  # fmt: skip
        if data["name"] == "nexar" and (path / "train.csv").is_file():
            return read_truth(reading, path / "train.csv", data, options)  # the importer would want the videos
        return _truth(
            resolve("importer", data["importer"])(path, {**data["options"], "event_time": "ignore"}), str(path)
        )
    known = reading.dataset(path, options)
    if known is not None:
        return _truth(known, str(path))
    records = read_records(path, options.get("encoding"))
    return _truth(_table(reading, records, options), str(path), records.notes)


def of_split(truth: Truth, wanted: str, predicted: Sequence[Any]) -> Truth:
    """Keep the clips of one split.

    Args:
        truth: all clips.
        wanted: ``train``, ``val``, ``test``, ``all``, ``predicted`` (only clips with a prediction), or ``auto``: the
            split that the predictions are of.
        predicted: ids that have a prediction.

    Raises:
        DataError: if the predictions are of several splits, or no clip is left.
    """
    train = tuple(c for c in truth.clips if c.split == "train" and not c.extra.get("unsplit"))
    key = common_key(predicted, [c.clip_id for c in truth.clips])
    said = {key(p) for p in predicted}
    met = [c for c in truth.clips if key(c.clip_id) in said]
    counts = {s: sum(c.split == s for c in met) for s in SPLITS}
    whole = wanted == "all" or (wanted == "auto" and all(c.extra.get("unsplit") for c in truth.clips))
    if wanted == "predicted":
        rest = len(truth.clips) - len(met)
        notes = [*truth.notes, f"{rest} of {len(truth.clips)} clips have no prediction and were left out "
                 "(split=predicted)"] if rest else truth.notes  # fmt: skip
        return Truth(tuple(met), truth.source, "predicted", train, notes)
    if whole:
        return Truth(truth.clips, truth.source, "all", train, truth.notes)
    if wanted == "auto":
        there = [s for s in SPLITS if counts[s]]
        if len(there) > 1:
            raise DataError(
                "the predictions are of several splits", got=", ".join(f"{s} {counts[s]}" for s in there),
                do=f"say which is scored: split={there[-1]}, or split=all",
            )  # fmt: skip
        wanted = there[0] if there else "test"
    kept = tuple(c for c in truth.clips if c.split == wanted)
    if not kept:
        sizes = {s: sum(c.split == s for c in truth.clips) for s in SPLITS}
        raise DataError(
            f"{truth.source} has no {wanted} clips", got=", ".join(f"{s} {n}" for s, n in sizes.items()),
            do="use split=all, or another of these",
        )  # fmt: skip
    return Truth(kept, truth.source, wanted, () if wanted == "train" else train, truth.notes)


def _table(reading: Reading, records: Records, options: Mapping[str, Any], taken: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a plain table: an id, what is right, and optionally group, split, question and choices."""
    named = options.get("truth_columns") or {}
    name = records.column(named.get("id"), IDS, "truth_columns.id", "the clip's name")
    usual = [t for t in reading.targets if t not in {c.strip().lower() for c in taken}]
    target = records.column(named.get("target"), usual, "truth_columns.target", "what is right")
    if name is None or target is None:
        raise DataError(
            f"{records.path} has no column with {'the clip' if name is None else 'what is right'}",
            got=", ".join(records.columns)[:300],
            do=f"name it with truth_columns.{'id' if name is None else 'target'}=NAME, or give truth=FILE",
        )  # fmt: skip
    group = records.column(named.get("group"), ("group",), "truth_columns.group", "the recording")
    split = records.column(named.get("split"), ("split",), "truth_columns.split", "the split")
    for record in records.rows:
        row: Row = {"clip_id": text_of(record.get(name)) or "", "extra": {}}
        if not row["clip_id"]:
            yield {**row, "clip_id": "a row without id", "problem": "no id"}
            continue
        if group and text_of(record.get(group)):
            row["group"] = str(text_of(record[group]))
        if split and text_of(record.get(split)):
            row["split"] = SPLIT_NAMES.get(str(record[split]).strip().lower(), str(record[split]))
        yield reading.truth(row, record.get(target), record)


def _truth(rows: Iterable[Row], source: str, notes: Sequence[str] = ()) -> Truth:
    clips: dict[str, Clip] = {}
    wrong: list[str] = []
    for row in rows:
        name = str(row["clip_id"])
        label, event, alert, odd = checked_row(row)
        odd = row.get("problem") or odd
        if not odd and row.get("split") not in (None, *SPLITS):
            odd = f"unknown split {row['split']!r}"
        if odd:
            wrong.append(f"{name}: {odd}")
            continue
        extra = {**(row.get("extra") or {}), **{k: row[k] for k in ("question", "choices") if row.get(k)}}
        if row.get("split") is None:
            extra["unsplit"] = True
        group = row.get("group") or name
        if "caption" in extra and group in (name, Path(name).stem):
            group = bvpi.block_of(name, BLOCK)
        clip = Clip(name, "", str(group), row.get("split") or "test", label, event, alert, 1.0, 1.0, extra)
        known = clips.setdefault(name, clip)
        if known is not clip and (known.label, known.extra) != (clip.label, clip.extra):
            wrong.append(f"{name}: two rows say different things, the first counts")
    if not clips:
        raise DataError(f"{source} has no usable row", got="; ".join([*wrong, *notes][:3]), do="name another truth=")
    told = [*notes]
    if wrong:
        told.append(f"{len(wrong)} rows of {source} cannot be compared: {'; '.join(wrong[:3])}")
    return Truth(tuple(clips.values()), source, notes=told)
