"""BDD100K scene annotations: ``[{"video_id", "QA": {"q", "a"}}]`` with videos or extracted frames.

Layout of the BDD100K description project (SarveshBTelang): a JSON list beside the videos. Also read:
rows of prompt and completion with pictures, as JSON lines or, as the hub stores data sets, Parquet.
Videos of one drive share the first eight characters of their name, so that is the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.pictures import SUFFIXES, stored_path
from dashvlm.data.rows import Row
from dashvlm.data.textfiles import json_file, json_lines
from dashvlm.errors import DataError

MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
"""First bytes of a picture file -> what its name ends with."""
VIDEOS = (".mov", ".mp4", ".avi", ".mkv", ".webm")


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row an annotated video.

    Args:
        root: folder with the annotations; videos are looked for in it and in ``videos/``, folders of
            extracted frames also in ``frames/`` and ``images/``.
        options: ``file``: the annotations, below the root; by default the only JSON file, or the
            one with ``main`` in its name.

    Raises:
        DataError: if no file, or more than one, could be meant, or it is not in a known layout.
    """
    stored = _stored(root, options.get("file"))
    for path in stored:
        yield from _parquet_rows(path, root)
    if stored:
        return
    path = _annotations(root, options.get("file"))
    if path.suffix.lower() == ".jsonl":
        for number, item, wrong in json_lines(path, options.get("encoding")):
            place = f"{path.name}:{number}"
            yield {"clip_id": place, "problem": wrong} if wrong else _completion(item, place)
        return
    items = json_file(path, options.get("encoding"))
    if not isinstance(items, list):
        raise DataError(f"{path} is not a list of rows", got=type(items).__name__, do="name another data.options.file")
    for number, item in enumerate(items):
        yield _row(item, f"{path.name}[{number}]", root)


def _annotations(root: Path, wanted: Any) -> Path:
    if wanted:
        path = root / str(wanted)
        if not path.is_file():
            raise DataError(f"data.options.file={wanted} is not in {root}", do="name a .json or .jsonl file")
        return path
    found = sorted(p for p in (*root.glob("*.json"), *root.glob("*.jsonl")) if not p.name.startswith("._"))
    main = [p for p in found if "main" in p.stem] if len(found) > 1 else found
    if len(main) != 1:
        raise DataError(
            f"data=bdd100k: {'no' if not found else 'more than one'} file of annotations in {root}",
            got=", ".join(p.name for p in found) or "no .json or .jsonl file",
            do="set data.options.file=NAME" if found else "set data.root=FOLDER; or try data=synthetic",
        )
    return main[0]


def _row(item: Any, place: str, root: Path) -> Row:
    qa = item.get("QA") if isinstance(item, Mapping) else None
    name = item.get("video_id") if isinstance(item, Mapping) else None
    if not isinstance(name, str) or not name:
        return {"clip_id": place, "problem": "no video_id"}
    stem = name.rsplit(".", 1)[0] if name.lower().endswith(VIDEOS) else name
    row: Row = {"clip_id": stem, "group": group_of_video(stem), "video": _find(root, name, stem)}
    if not isinstance(qa, Mapping) or not isinstance(qa.get("a"), str) or not qa["a"].strip():
        return {**row, "problem": "no answer in QA"}
    return {**row, "question": str(qa.get("q") or "").strip() or None, "extra": {"annotation": qa["a"]}}


def _find(root: Path, name: str, stem: str) -> str:
    """The video's or frames' name below the root: BDD100K's own layout has ``videos/train/*.mov``."""
    parts = ("", "train/", "val/", "test/")
    for folder in ("", *(f"{f}/{part}" for f in ("videos", "frames", "images") for part in parts)):
        for candidate in (name, *(f"{stem}{s}" for s in VIDEOS), stem):
            if len(candidate) < 200 and ".." not in candidate and stored_path(root, f"{folder}{candidate}").exists():
                return f"{folder}{candidate}"
    return name


def _completion(item: Any, place: str) -> Row:
    """Read ``{"images": [...], "prompt": ..., "completion": ...}``; texts or chats."""
    if not isinstance(item, Mapping):
        return {"clip_id": place, "problem": "not an object"}
    images = item.get("images") or item.get("image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(i, str) and i.lower().endswith(SUFFIXES) for i in images):
        return {"clip_id": place, "problem": "images is not a list of picture files"}
    answer = _text(item.get("completion"))
    first = Path(images[0]) if images else Path(place)
    # Frames of one video lie in a folder, or share the name before the frame's number.
    alone = first.parent.name not in ("", "images", "frames")
    stem = first.parent.name if alone else re.sub(r"[_-]?(?:frame)?[_-]?\d{1,5}$", "", first.stem)
    row: Row = {"clip_id": str(item.get("id") or place), "group": group_of_video(stem), "video": images}
    if not answer:
        return {**row, "problem": "no completion"}
    return {**row, "question": _text(item.get("prompt")) or None, "extra": {"annotation": answer}}


def _stored(root: Path, wanted: Any) -> list[Path]:
    """Parquet files, as the hub stores data sets; none where a JSON file is meant."""
    if wanted:
        return [root / str(wanted)] if str(wanted).endswith(".parquet") and (root / str(wanted)).is_file() else []
    if list(root.glob("*.json")) + list(root.glob("*.jsonl")):
        return []
    return sorted((*root.glob("*.parquet"), *root.glob("data/*.parquet")))


def _parquet_rows(path: Path, root: Path) -> Iterator[Row]:
    """Rows ``images, prompt, completion`` of a hub data set, whose pictures are in the file itself.

    They are written beside it once, as ``unpacked-NAME/ROW_PICTURE.EXT``. Files named ``train``, ``validation`` or
    ``test`` are those splits, unless there is but one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        pointer = path.read_bytes()[:12] == b"version http"
        raise DataError(
            f"{path.name} is no Parquet file", got="a pointer of Git LFS" if pointer else str(error).splitlines()[0],
            do="download the file itself (git lfs pull, or data.root=hf://datasets/OWNER/NAME)",
        ) from error  # fmt: skip
    others = {p.stem.split("-")[0] for p in path.parent.glob("*.parquet")}
    split = {"train": "train", "validation": "val", "val": "val", "test": "test"}.get(path.stem.split("-")[0])
    told = {"split": split} if split and len(others) > 1 else {}
    names = set(table.schema_arrow.names)
    if "completion" not in names or not names & {"images", "image"}:
        raise DataError(
            f"{path.name} has not the columns images, prompt, completion", got=", ".join(sorted(names)),
            do="name another data.options.file",
        )  # fmt: skip
    number = 0
    for batch in table.iter_batches(batch_size=16):
        for item in batch.to_pylist():
            place, number = f"{path.name}:{number}", number + 1
            pictures = item.get("images") or item.get("image")
            pictures = [pictures] if isinstance(pictures, Mapping) else pictures or []
            found = [_unpacked(p, path.parent / f"unpacked-{path.stem}", f"{number - 1:06d}_{i:02d}")
                     for i, p in enumerate(pictures)]  # fmt: skip
            if not found or None in found:
                yield {"clip_id": place, "problem": "a picture is not stored in the file, or no JPEG, PNG or WebP"}
                continue
            first = next((str(p["path"]) for p in pictures if p.get("path")), "")
            row = _completion({**item, "images": [str(p.relative_to(root)) for p in found if p]}, place)
            stem = re.sub(r"[_-]?(?:frame)?[_-]?\d{1,5}$", "", Path(first).stem) if first else ""
            yield {**row, **told, "clip_id": str(item.get("id") or place), "group": group_of_video(stem or place)}


def _unpacked(picture: Any, folder: Path, name: str) -> Path | None:
    """Write the bytes of a stored picture once; None if they are no picture."""
    content = picture.get("bytes") if isinstance(picture, Mapping) else None
    if not isinstance(content, bytes):
        return None
    kind = next((suffix for start, suffix in MAGIC.items() if content.startswith(start)), None)
    if kind is None:
        return None
    path = folder / f"{name}{kind}"
    if not path.is_file() or path.stat().st_size != len(content):
        try:
            folder.mkdir(exist_ok=True)
            temporary = path.with_suffix(".part")
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            raise DataError(
                f"pictures cannot be unpacked into {folder}", got=str(error.strerror),
                do="copy the data set to a folder that can be written, with room for its pictures",
            ) from error  # fmt: skip
    return path


def _text(value: Any) -> str:
    """The text of a string, a message or a chat."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return _text(value.get("content") if "content" in value else value.get("text"))
    if isinstance(value, list):
        return "\n".join(filter(None, (_text(v) for v in value))).strip()
    return ""


def group_of_video(stem: str) -> str:
    """Return the drive that a BDD100K video was cut from.

    Example:
        >>> group_of_video("000d35d3-41990aa4"), group_of_video("clip7")
        ('000d35d3', 'clip7')
    """
    return stem.split("-")[0] if re.match(r"^[0-9a-f]{8}-", stem) else stem
