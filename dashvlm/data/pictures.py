"""Still pictures as clips: one picture, a folder of extracted frames, or a list of files.

A picture lasts one second, so the i-th of a folder is the frame at ``i`` seconds, unless ``frame_times.json`` lies
beside them. Everything else (times, store, checksums) is the same as for a video.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from dashvlm.data.clip import FrameArray
from dashvlm.errors import DataError, VideoError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FRAME_TIMES = "frame_times.json"
"""Beside pictures, where it is: name of each -> its time in seconds; without it they are a second apart."""
SEPARATOR = "\n"
"""Between the names of a clip that is a list of pictures; no file name contains it."""


def is_pictures(path: Path) -> bool:
    """Whether a clip's path means still pictures and not a video."""
    return SEPARATOR in str(path) or path.suffix.lower() in SUFFIXES or path.is_dir()


def files_of(path: Path) -> list[Path]:
    """Return the files behind a clip's path; a folder's pictures in natural order (2 before 10)."""
    if SEPARATOR in str(path):
        return [Path(p) for p in str(path).split(SEPARATOR)]
    if path.is_dir():
        found = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("._"))
        return sorted(found, key=_natural)
    return [path]


def sources_of(path: Path) -> list[Path]:
    """All files that decide what a clip shows: its own, and the times of its pictures where they lie beside them."""
    files = files_of(path)
    times = [files[0].parent / FRAME_TIMES] if files and is_pictures(path) else []
    return files + [t for t in times if t.is_file()]


def size_of(path: Path) -> int:
    """Bytes of all files behind a clip's path; 0 where there are none."""
    if str(path) in ("", "."):
        return 0
    return sum(p.stat().st_size for p in files_of(path) if p.is_file())


def confined_files(root: Path, names: str | Sequence[str]) -> Path:
    """Find the file or files of a clip, refusing anything outside the dataset's folder.

    Names that differ from a file's in the case of letters or in the form of accents only (NFC, NFD) mean it. The
    dataset's folder may be a link, and a snapshot of the hub, whose files are links into the cache beside it.

    Raises:
        DataError: if a name leads out of ``root`` (absolute path, ``..``, symbolic link).
    """
    base = root.resolve()
    found = []
    for name in [names] if isinstance(names, str) else names:
        if not name:
            raise DataError("a clip without a file name", do="name a video, a folder or pictures")
        odd = SEPARATOR in str(name) or "\x00" in str(name) or "://" in str(name) or len(str(name)) > 1000
        path = base if odd else stored_path(base, str(name))
        if odd or not lies_in(root, path):
            raise DataError(
                "a video path leads out of the data root",
                got=f"{str(name)[:200]!r} under {root}",
                do="keep videos below data.root and name them relative to it",
            )
        found.append(os.path.normpath(path))
    if not found:
        raise DataError("a clip without a file name", do="name a video, a folder or pictures")
    return Path(SEPARATOR.join(found))


def lies_in(root: Path, path: Path) -> bool:
    """Whether a clip's file, all its files or all pictures of its folder lie in a dataset's folder, links followed.

    A snapshot of the hub is a folder whose files are links into the cache beside it.
    """
    base = root.resolve()
    allowed = [base, *_caches(root.absolute()), *_caches(base)]
    files = [Path(name) for name in str(path).split(SEPARATOR)]
    files += [file for folder in files if folder.is_dir() for file in files_of(folder)]
    return all(any(file.resolve().is_relative_to(a) for a in allowed) for file in files)


def _caches(root: Path) -> list[Path]:
    """The blobs of the hub's cache that a folder is a snapshot of: ``.../blobs`` beside ``.../snapshots/REVISION``."""
    return [
        p.parent / "blobs" for p in (root, *root.parents) if p.name == "snapshots" and (p.parent / "blobs").is_dir()
    ]


@functools.lru_cache(maxsize=1024)
def _entries(folder: Path, changed_ns: int) -> dict[str, str]:
    """Names in a folder by their folded form, those that only one entry has."""
    names: dict[str, list[str]] = {}
    for entry in folder.iterdir():
        names.setdefault(_folded(entry.name), []).append(entry.name)
    return {key: found[0] for key, found in names.items() if len(found) == 1}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def stored_path(base: Path, name: str) -> Path:
    """The path of a name below a folder, spelled as on the disk: case and form of accents may differ."""
    path = base / name
    if path.exists() or ".." in Path(name).parts or Path(name).is_absolute():
        return path
    path = base
    for part in Path(name).parts:
        if not (path / part).exists() and path.is_dir():
            part = _entries(path, path.stat().st_mtime_ns).get(_folded(part), part)
        path = path / part
    return path


def picture_times(path: Path) -> NDArray[np.float64] | None:
    """The times of a clip's pictures, seconds from the first, where :data:`FRAME_TIMES` lies beside them.

    Raises:
        VideoError: if it names other pictures, or times that do not ascend.
    """
    files = files_of(path)
    table = files[0].parent / FRAME_TIMES if files else None
    if table is None or not table.is_file():
        return None
    try:
        known = json.loads(table.read_text(encoding="utf-8"))
        times = np.array([float(known[file.name]) for file in files], np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VideoError(f"{table} does not give each picture a time", got=repr(error)[:200]) from error
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise VideoError(f"{table}: times must ascend", got=str(times.tolist())[:200])
    return times - times[0]


def picture_size(path: Path) -> tuple[int, int, int]:
    """Return (number of pictures, width, height of the first).

    Raises:
        VideoError: if there is none, or a file is missing or not a picture.
    """
    files = files_of(path)
    if not files:
        raise VideoError(f"{path}: a folder without pictures", do=f"put {', '.join(SUFFIXES)} files into it")
    for file in files:
        if not file.is_file():
            raise VideoError(f"{file}: no such file")
    first = _open(files[0])
    return len(files), first.width, first.height


def read_pictures(path: Path, wanted: NDArray[np.int64], size: tuple[int, int] | None) -> FrameArray:
    """Read pictures by number: uint8 RGB [T, H, W, 3].

    Pictures of different sizes are brought to ``size``, or to the size of the first.

    Raises:
        VideoError: if a picture cannot be read.
    """
    files = files_of(path)
    pictures = [_open(files[int(i)]) for i in wanted]
    height, width = size or (pictures[0].height, pictures[0].width)
    return np.stack([
        np.asarray(p if p.size == (width, height) else p.resize((width, height), Image.Resampling.BILINEAR))
        for p in pictures
    ])  # fmt: skip


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
            return _as_shown(_turned(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders of pictures raise whatever a broken file leads them to
        raise VideoError(f"{file}: not a readable picture", got=str(error), do="replace or remove the file") from error


def _turned(image: Image.Image) -> Image.Image:
    """A picture as its EXIF orientation says; other tags may be broken."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
        return image if turn is None else image.transpose(turn)


_TURNS = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), strict=True))  # fmt: skip
"""EXIF orientation -> how the picture is turned."""


def _as_shown(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: 16 bits scaled to 8, transparent parts on white, printing colours by their profile."""
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray(((deep + 128) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile: the plain formula
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if shown is not None:
                return shown
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(p.isdecimal()), int(p) if p.isdecimal() else 0, p) for p in parts]
