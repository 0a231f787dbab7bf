"""Files of runs: read within bounds, for they may come from strangers; written whole or not at all."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dashvlm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = {"yaml": 1 << 20, "json": 64 << 20, "jsonl": 64 << 20, "parquet": 4 << 30}
MAX_NODES = 500_000
MAX_DEPTH = 60
MAX_CELLS = 200_000_000


class _Plain(yaml.SafeLoader):
    """YAML without merge keys, which stand for more than they are: nine lines may mean gigabytes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse ``<<``."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "a merge key (<<)", node.start_mark)
        super().flatten_mapping(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        DataError: if it is missing, too large, nested too deep, no YAML, or no mapping; also where a few bytes stand
            for a great many values (aliases of aliases).
    """
    text = _text(path, "yaml")
    try:
        value = yaml.load(text, Loader=_Plain)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # Not the line itself: the file may be a link to another one.
        raise _unusable(path, str(getattr(error, "problem", None) or type(error).__name__)[:200]) from error
    return _mapping(path, value)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DataError: as :func:`read_yaml`.
    """
    try:
        value = json.loads(_text(path, "json"))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, str(error)[:200] or "nested too deep") from error
    return _mapping(path, value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; lines that are no object, such as the torn last one of a killed process, are left out.

    Raises:
        DataError: if the file is missing, too large or not UTF-8.
    """
    found = []
    for line in _text(path, "jsonl").split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a Parquet file.

    Args:
        path: the file.
        columns: that it must have.

    Raises:
        DataError: if it is missing, damaged, far larger unpacked than a table of predictions, or lacks a column.
    """
    import pandas as pd
    import pyarrow
    import pyarrow.parquet as pq

    try:
        size = _regular(path)
        meta = pq.read_metadata(path)
        groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
        if max(size, sum(groups)) > MAX_BYTES["parquet"] or meta.num_rows * meta.num_columns > MAX_CELLS:
            raise _unusable(path, f"{meta.num_rows} rows, {meta.num_columns} columns: more than such a table has")
        table = pd.read_parquet(path)
    except OSError as error:
        raise _unusable(path, str(error.strerror or error).splitlines()[0][:200]) from error
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise _unusable(path, (str(error).splitlines() or [type(error).__name__])[0][:200]) from error
    lacking = [c for c in columns if c not in table]
    if lacking:
        raise _unusable(path, f"no column {', '.join(lacking)}")
    return table


def is_name(text: Any) -> bool:
    """Whether a text can be the name of a run's folder, and nothing that leads elsewhere."""
    return isinstance(text, str) and bool(re.fullmatch(r"[A-Za-z0-9_][\w.+-]{0,200}", text, re.ASCII))


def _text(path: Path, kind: str) -> str:
    try:
        size = _regular(path)
        if size > MAX_BYTES[kind]:
            raise _unusable(path, f"{size / 1e6:.0f} MB, at most {MAX_BYTES[kind] / 1e6:.0f} are read")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(path, f"not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from error


def _regular(path: Path) -> int:
    """The size of a file that is one: reading a pipe or a device might never end."""
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        raise _unusable(path, "no ordinary file")
    return known.st_size


def _mapping(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unusable(path, f"a {type(value).__name__}, not a mapping")
    waiting, seen = [(value, 0)], 0
    while waiting:  # an alias stands for all that it names, and may name itself
        node, depth = waiting.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise _unusable(path, "more values, or deeper ones, than such a file has")
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(child, depth + 1) for child in children]
    return value


def _unusable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be read", got=why, do="take the file from where the run was made, or remove the run's folder"
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    _write(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML atomically."""
    _write(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def own(path: Path) -> Path:
    """A place to write to: a link that lies there, perhaps a stranger's, is taken away and not followed."""
    if path.is_symlink():
        path.unlink()
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    if isinstance(node, np.generic):
        node = node.item()
    return None if isinstance(node, float) and not np.isfinite(node) else node
