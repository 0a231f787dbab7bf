"""Label files: what a teacher wrote about each clip, ours and the ones that others published.

Ours is JSON lines, a line an answer (:class:`Label`), appended as answers arrive; the last line of a
killed process may be torn and is left out. Foreign ones are CSV files ``id,label,response`` as
frankafan/dashcam-collisions wrote them: cp1252, with the header repeated and ids twice.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dashvlm.data.rows import Row, parse_label
from dashvlm.data.textfiles import strict_json
from dashvlm.errors import ConfigError, DataError
from dashvlm.text.parsing import parse_yes_no
from dashvlm.text.reasoning import split

MODES = ("told", "blind")
STATUSES = ("labelled", "unparsed", "refused", "empty")
_OUTCOMES = (
    r"there (?:was|is|will be|were) (?:indeed )?(?:a|no) (?:vehicle )?(?:collision|crash|accident)",
    r"(?:a|the|no) (?:collision|crash|accident|impact) (?:ha(?:s|ve|d) )?"
    r"(?:eventually |ultimately )?(?:occurr|occurs|happen|took place|takes place)",
    r"(?:results?|resulted|resulting|led|leads|leading) (?:in|to) (?:a|the|this) (?:\w+ )?(?:collision|crash|accident)",
    r"(?:caus(?:ed|es|ing)|before|after|during|of) the (?:collision|crash|accident)",
    r"no (?:collision|crash|accident)\b",
    r"\b(?:collided|crashed)\b",
    r"as (?:stated|told|indicated|given),",
)  # fmt: skip
_OUTCOME = re.compile("|".join(f"(?:{p})" for p in _OUTCOMES), re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """An answer of a teacher about a clip.

    Attributes:
        clip_id: the clip.
        mode: ``told``: the prompt gave the label away; ``blind``: it did not.
        status: ``labelled``, ``unparsed`` (not in the form asked for), ``refused`` or ``empty``.
        text: the answer as written.
        reasoning: its rationale, for yes/no questions.
        answer: 1 for yes, 0 for no, None where there is none.
        label: what the dataset says.
        num_frames: different pictures that were sent; None if unknown.
        model: the teacher.
        key: hash of the request.
        cost_usd: what it cost; 0 if it came from the cache.
        more: template, times of the frames, tokens.
    """

    clip_id: str
    mode: str
    status: str
    text: str
    reasoning: str = ""
    answer: int | None = None
    label: int | None = None
    num_frames: int | None = None
    model: str = ""
    key: str = ""
    cost_usd: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One line of a label file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class LabelFile:
    """The labels of a file, and the lines that are none.

    Attributes:
        path: the file.
        labels: in the order of the file, one a clip and mode.
        dropped: reason -> number of lines.
    """

    path: Path
    labels: tuple[Label, ...]
    dropped: Mapping[str, int]


def read_labels(path: Path) -> LabelFile:
    """Read a label file of ours (``.jsonl``) or a published ``id,label,response`` table (``.csv``).

    Raises:
        DataError: if the file is missing, of another kind, or has no usable line.
    """
    if not path.is_file():
        raise DataError(f"label file {path} does not exist", do="make one with `python -m dashvlm.label data=...`")
    dropped: Counter[str] = Counter()
    found = _from_csv(path, dropped) if path.suffix.lower() == ".csv" else _from_lines(path, dropped)
    labels: dict[tuple[str, str], Label] = {}
    foreign = path.suffix.lower() == ".csv"
    for label in found:
        again = (label.clip_id, label.mode) in labels
        if again and foreign:
            dropped["id seen before; the first line is used"] += 1
            continue
        if again:  # asked again with other frames or another prompt
            dropped["an answer that a later line replaces"] += 1
        labels[label.clip_id, label.mode] = label
    if not labels:
        raise DataError(f"label file {path} has no usable line", got=_counted(dropped) or "an empty file")
    return LabelFile(path, tuple(labels.values()), dict(dropped))


def states_outcome(text: str) -> str | None:
    """The phrase with which a rationale repeats the told outcome instead of arguing for it, or None.

    Example:
        >>> states_outcome("The SUV brakes late, which resulted in a collision."), states_outcome("The gap closes.")
        ('resulted in a collision', None)
    """
    found = _OUTCOME.search(text)
    return found.group() if found else None


def with_labels(rows: Iterable[Row], file: LabelFile, takes: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Give an importer's rows what a teacher wrote about them.

    Args:
        rows: of a dataset.
        file: the labels.
        takes: ``rationale`` or ``annotation``: what the task learns from a teacher.
        options: ``mode``, ``drop_stating_outcome``, ``replace_annotations`` (else a teacher's annotation stands
            only where the dataset has none).

    Raises:
        ConfigError: if the task takes none, or the file has no label of the mode.
        DataError: if no label belongs to a row.
    """
    modes = {label.mode for label in file.labels}
    mode = str(options.get("mode") or (next(iter(modes)) if len(modes) == 1 else "told"))
    if mode not in modes:
        raise ConfigError(f"data.label_options.mode={mode}: {file.path} has {', '.join(sorted(modes))}")
    by_clip = {label.clip_id: label for label in file.labels if label.mode == mode}
    matched = 0
    for row in rows:
        label = by_clip.get(str(row["clip_id"]))
        matched += label is not None
        extra = dict(row.get("extra") or {})
        if label is not None and takes == "annotation":
            if label.status == "labelled" and (options.get("replace_annotations") or not extra.get("annotation")):
                extra |= {"annotation": label.text, "annotated_by": label.model or "a teacher"}
        elif label is not None:
            why = _unusable(label, parse_label(row.get("label"))[0], bool(options.get("drop_stating_outcome")))
            extra |= {"rationale_problem": why} if why else {"rationale": label.reasoning}
        yield {**row, "extra": extra}
    if not matched:
        raise DataError(
            f"data.labels={file.path}: not one of its {len(by_clip)} clips is in the dataset",
            got=", ".join(list(by_clip)[:3]), do="name the label file of this dataset",
        )  # fmt: skip


def _unusable(label: Label, truth: int | None, drop_stating: bool) -> str | None:
    if label.status != "labelled":
        return f"the teacher's answer is {label.status}"
    if label.answer is not None and truth is not None and label.answer != truth:
        return "the teacher's answer is not the dataset's"
    if drop_stating and (phrase := states_outcome(label.reasoning)):
        return f"states the outcome: {phrase!r}"
    return None


def _from_lines(path: Path, dropped: Counter[str]) -> Iterator[Label]:
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            item = strict_json(line)
            known = {k: v for k, v in item.items() if k in Label.__dataclass_fields__}
            label = Label(**known)
        except (ValueError, TypeError, AttributeError, RecursionError):
            dropped["not a label (torn or foreign line)"] += 1
            continue
        if label.mode in MODES and label.status in STATUSES and isinstance(label.text, str):
            yield label
        else:
            dropped["not a label (torn or foreign line)"] += 1


def _from_csv(path: Path, dropped: Counter[str]) -> Iterator[Label]:
    """Published tables: the label was in the prompt, so the mode is told."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = {"id", "label", "response"} - set(reader.fieldnames or [])
    if missing:
        raise DataError(
            f"label file {path}: columns are missing: {', '.join(sorted(missing))}",
            got=", ".join(reader.fieldnames or []) or "nothing", do="use a table id,label,response, or our .jsonl",
        )  # fmt: skip
    try:
        for line in reader:
            if line["id"] == "id":
                dropped["the header again"] += 1
                continue
            label, wrong = parse_label(line["label"])
            number, written = str(line["id"] or "").strip().removesuffix(".0"), str(line["response"] or "")
            if wrong or not number or not written.strip():
                dropped[wrong or "no id or no response"] += 1
                continue
            yield from_text(number.zfill(5) if number.isdigit() else number, "told", written, label)
    except csv.Error as error:
        raise DataError(f"label file {path} cannot be read", got=str(error)) from error


def from_text(clip_id: str, mode: str, text: str, label: int | None) -> Label:
    """A published answer: tagged, or a rationale without a tag, as the project kept them."""
    parts = split(text)
    answer = parse_yes_no(text)[0] if parts else None
    return Label(clip_id, mode, "labelled", text, parts[0] if parts else text.strip(), answer, label)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in counts.items())
