"""Records of a CSV, JSON, JSON lines or Parquet file that others wrote, and which of their columns is what."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dashvlm.data.textfiles import csv_rows, read_text, strict_json
from dashvlm.errors import DataError
from dashvlm.safety.files import read_table

Record = dict[str, Any]
_SEPARATORS = ",;\t|"
_LINES = (".jsonl", ".ndjson", ".jsonlines")
_MEDIA = re.compile(r"\.(mp4|mov|avi|mkv|webm|ts|jpe?g|png|bmp|webp)$", re.IGNORECASE)


@dataclass(frozen=True)
class Records:
    """What a file holds.

    Attributes:
        path: the file.
        rows: one mapping a record; missing values are None.
        notes: records that could not be read, by line.
    """

    path: Path
    rows: list[Record]
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def column(self, wanted: str | None, names: Iterable[str], option: str, what: str) -> str | None:
        """The column that holds something: as named, or the first of some usual names.

        Args:
            wanted: what the user named, or None.
            names: usual names, the likeliest first; case does not count.
            option: the word of the command line that names it.
            what: what it holds, for the message.

        Raises:
            DataError: if the named column does not exist.
        """
        there = {name.strip().lower(): name for name in reversed(self.columns)}
        if wanted is not None:
            if str(wanted).strip().lower() in there:
                return there[str(wanted).strip().lower()]
            raise DataError(
                f"{self.path} has no column {wanted} with {what}", got=", ".join(self.columns)[:300],
                do=f"name one of these with {option}=NAME",
            )  # fmt: skip
        filled = {n: c for n, c in there.items() if any(text_of(row.get(c)) is not None for row in self.rows)}
        return next((filled[name] for name in names if name in filled), None)


def read_records(path: Path, encoding: str | None = None) -> Records:
    """Read a file of records.

    JSON may be a list of objects, an object with one list of objects in it, or an object that names each record's id.
    NaN and infinite numbers are missing values.

    Raises:
        DataError: if the file is missing, empty, or in none of these forms.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", do="name a CSV, JSON, JSON lines or Parquet file")
    notes: list[str] = []
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".gz", ".zip"):
        raise DataError(f"{path} is a spreadsheet or packed", do="save it as CSV, or unpack it")
    if path.suffix.lower() in (".parquet", ".pq"):
        rows = _parquet(path)
    else:
        text = read_text(path, encoding)
        if path.suffix.lower() in _LINES:
            rows = _lines(text, notes)
        elif text.lstrip()[:1] in ("[", "{"):
            rows = _json(path, text, notes)
        else:
            rows = _csv(path, text, encoding, notes)
    if not rows:
        raise DataError(f"{path} has no rows", got="; ".join(notes[:3]), do="a record for each clip is needed")
    return Records(path, [{str(k): _plain(v) for k, v in row.items()} for row in rows], notes)


def _parquet(path: Path) -> list[Record]:
    table = read_table(path)
    found = (table.reset_index() if table.index.name else table).to_dict("records")
    return [{str(k): v for k, v in row.items()} for row in found]


def _lines(text: str, notes: list[str]) -> list[Record]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = strict_json(line, missing_numbers=True)
        except ValueError as error:
            notes.append(f"line {number} is not JSON ({error})")
            continue
        if isinstance(value, dict):
            rows.append(value)
        else:
            notes.append(f"line {number} is a {type(value).__name__}, not an object")
    return rows


def _json(path: Path, text: str, notes: list[str]) -> list[Record]:
    try:
        value = strict_json(text, missing_numbers=True)
    except ValueError as error:
        if "Extra data" in str(error):  # JSON lines by another name
            return _lines(text, notes)
        raise DataError(f"{path} is not JSON", got=str(error), do="write it again, or as JSON lines") from error
    if isinstance(value, Mapping):
        lists = [v for v in value.values() if isinstance(v, list) and any(isinstance(i, Mapping) for i in v)]
        if len(lists) == 1:
            value = lists[0]
        elif lists:
            raise DataError(f"{path} holds several lists of records", got=", ".join(value), do="keep the one to score")
        elif sum(isinstance(v, Mapping) for v in value.values()) == 1 and len(value) > 1:
            value = _by_name(next(v for v in value.values() if isinstance(v, Mapping)))  # {"model": ..., "scores": {}}
        elif any(isinstance(v, Mapping | list) for v in value.values()) or len(value) > 1:
            value = _by_name(value)
        else:
            value = [value]
    odd = [i for i, item in enumerate(value) if not isinstance(item, Mapping)]
    notes += [f"record {i} is a {type(value[i]).__name__}, not an object" for i in odd]
    return [dict(item) for item in value if isinstance(item, Mapping)]


def _by_name(value: Mapping[str, Any]) -> list[Record]:
    """Records of an object whose keys are the clips' names."""
    return [{"id": k, **v} if isinstance(v, Mapping) else {"id": k, "prediction": v} for k, v in value.items()]


def _csv(path: Path, text: str, encoding: str | None, notes: list[str]) -> list[Record]:
    head = re.split(r"\r\n|\n|\r", text.lstrip("\r\n"), maxsplit=1)[0]
    names = max((next(csv.reader(io.StringIO(head), delimiter=s), []) for s in _SEPARATORS), key=len)
    needed = [n.strip() for n in names if n.strip()]
    if not needed:
        raise DataError(f"{path} is empty", do="its first line must name the columns")
    rows = []
    for number, line in csv_rows(path, needed, lambda _: False, encoding):
        if isinstance(line, str):
            notes.append(f"line {number} has {line}")
        else:
            rows.append({k: v for k, v in line.items() if k})
    return rows


def _plain(value: Any) -> Any:
    """Plain Python, with None for a missing value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def text_of(value: Any) -> str | None:
    """A cell as text; None if it is empty.

    Example:
        >>> text_of(" Yes "), text_of(""), text_of(None), text_of("nan")
        ('Yes', None, None, None)
    """
    if value is None:
        return None
    found = str(value).strip()
    return found if found and found.lower() not in ("nan", "none", "null") else None


def same_name(value: Any) -> str:
    """A record's name without folders, media suffix and leading zeros.

    Example:
        >>> same_name("testing/images/a.jpg"), same_name("00123.mp4"), same_name(123.0), same_name("1339.0")
        ('a', '123', '123', '1339')
    """
    name = _MEDIA.sub("", str(value).strip().replace("\\", "/").rsplit("/", 1)[-1])
    number = re.fullmatch(r"0*(\d+)(?:\.0+)?", name)
    return number.group(1) if number else name


KEYS: Sequence[Callable[[Any], str]] = (
    lambda v: str(v).strip(),
    lambda v: str(v).strip().replace("\\", "/").rsplit("/", 1)[-1],
    same_name,
)
"""Ways in which two files may name one clip, from the strictest on."""


def common_key(names: Sequence[Any], others: Sequence[Any]) -> Callable[[Any], str]:
    """The way of naming under which most records of two files meet, the strictest of equals.

    A way under which different names fall together is left out.
    """

    def distinct(key: Callable[[Any], str], values: Sequence[Any]) -> bool:
        return len({key(v) for v in values}) == len({KEYS[0](v) for v in values})

    usable = [k for k in KEYS if distinct(k, names) and distinct(k, others)] or [KEYS[0]]
    return max(usable, key=lambda k: (len({k(v) for v in names} & {k(v) for v in others}), -usable.index(k)))
