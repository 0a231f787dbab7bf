"""Text, CSV and JSON files as others write them: read whole, or refused by name; no row is lost without a word."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dashvlm.errors import DataError

MAX_BYTES = 1 << 30
_SEPARATORS = (",", ";", "\t", "|")  # spreadsheets write the second in countries where the comma is for decimals


def read_text(path: Path, encoding: str | None = None) -> str:
    """Read a text file in UTF-8 or UTF-16, with or without byte order mark.

    Args:
        path: the file.
        encoding: its encoding where it is another one.

    Raises:
        DataError: if the file is missing, too large, or in an encoding that cannot be known.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", do="name a file below data.root")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is too large for a table", got=f"{path.stat().st_size / 1e9:.1f} GB", do="split it")
    raw = path.read_bytes()
    encoding = None if encoding is None else str(encoding)  # YAML reads 1252 as a number
    if encoding is None:
        encoding = "utf-8-sig"
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"
        elif raw[1:2] == b"\x00" or raw[:1] == b"\x00":
            encoding = "utf-16-le" if raw[1:2] == b"\x00" else "utf-16-be"
    try:
        return raw.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        place = f"byte {error.start}: {raw[error.start : error.start + 4]!r}" if isinstance(error, UnicodeError) else ""
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig').upper()}",
            got=place or str(error),
            do=f"convert it, for example from Windows: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new.csv",
        ) from error


def csv_rows(
    path: Path, needed: Sequence[str], is_row: Callable[[dict[str, str]], bool], encoding: str | None = None
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Read a CSV strictly.

    Args:
        path: the file; separated by commas, semicolons, tabs or bars.
        needed: columns that must be there.
        is_row: whether a mapping looks like a row of this table; finds rows that an open quote swallowed.
        encoding: see :func:`read_text`.

    Yields:
        Line number with the row, or with what is wrong with it.

    Raises:
        DataError: if columns are missing or named twice, or quotes are not closed.
    """
    text = read_text(path, encoding)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # as old Macs and some spreadsheets end lines
    head = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(_SEPARATORS, key=lambda s: (sum(_bare(c) in needed for c in head.split(s)), -_SEPARATORS.index(s)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            if not names:
                names = [c.strip() for c in cells]
                _check_columns(path, names, needed)
                continue
            if len(cells) != len(names):
                yield reader.line_num, f"{len(cells)} cells, the header has {len(names)}"
                continue
            row = dict(zip(names, cells, strict=True))
            _refuse_swallowed(path, reader.line_num, row, names, separator, is_row)
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read from line {reader.line_num} on", got=str(error),
            do="close every quote; texts with quotes, commas or line breaks need quotes around them",
        ) from error  # fmt: skip
    if not names:
        raise DataError(f"{path} is empty", do=f"its first line must name the columns {', '.join(needed)}")


def _bare(cell: str) -> str:
    return cell.strip().strip('"')


def _check_columns(path: Path, names: list[str], needed: Sequence[str]) -> None:
    lacking = [c for c in needed if c not in names]
    twice = sorted({c for c in needed if names.count(c) > 1})
    if lacking or twice:
        what = (
            f"columns are missing: {', '.join(lacking)}" if lacking else f"columns are there twice: {', '.join(twice)}"
        )
        raise DataError(
            f"{path}: {what}", got=", ".join(names)[:200], do=f"the header must name {', '.join(needed)} once each"
        )


def _refuse_swallowed(
    path: Path,
    line: int,
    row: dict[str, str],
    names: list[str],
    separator: str,
    is_row: Callable[[dict[str, str]], bool],
) -> None:
    """An open quote makes one cell of many rows; the next quote closes it without an error."""
    for name, cell in row.items():
        for inner in cell.splitlines()[1:]:
            cells = inner.split(separator)
            if len(cells) == len(names) and is_row(dict(zip(names, cells, strict=True))):
                raise DataError(
                    f"{path}: the {name} that ends in line {line} holds other rows", got=inner[:80],
                    do="close the quote that was opened before it",
                )  # fmt: skip


def json_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, Any, str | None]]:
    """Read JSON lines: (line number, value, None) or (line number, None, what is wrong).

    Lines end at a line feed only: other separators of Unicode may stand inside texts.
    """
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip():
            try:
                yield number, strict_json(line), None
            except ValueError as error:
                yield number, None, f"not JSON: {error}"


def json_file(path: Path, encoding: str | None = None) -> Any:
    """Read a JSON file.

    Raises:
        DataError: if it is none, repeats a key, or holds NaN.
    """
    try:
        return strict_json(read_text(path, encoding))
    except ValueError as error:
        raise DataError(f"{path} is not JSON", got=str(error), do="mend it or download it again") from error


def strict_json(text: str, missing_numbers: bool = False) -> Any:
    """Parse JSON; a repeated key, NaN, an infinite number or half a character is an error.

    Args:
        text: JSON.
        missing_numbers: take NaN and infinite numbers for null, as programs write a value that is not there.

    Raises:
        ValueError: with what is wrong.

    Example:
        >>> strict_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is there twice
    """
    numbers: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite}
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            **({"parse_constant": lambda _: None} if missing_numbers else numbers),
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    try:
        text.encode()
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in names if names.count(k) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def text_problem(item: Any, *keys: str) -> str | None:
    """Name the first of an object's keys whose value is there but is no text.

    Example:
        >>> text_problem({"text": ["a"]}, "text"), text_problem({"text": "a"}, "text"), text_problem({}, "text")
        ('text is a list, not a text', None, None)
    """
    for key in keys:
        if item.get(key) is not None and not isinstance(item[key], str):
            return f"{key} is a {type(item[key]).__name__}, not a text"
    return None
