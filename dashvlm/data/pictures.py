"""Still pictures as clips: one picture, a folder of extracted frames, or a list of files.

A picture lasts one second, so the i-th of a folder is the frame at ``i`` seconds. Everything
else (times, store, checksums) is the same as for a video.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dashvlm.data.clip import FrameArray
from dashvlm.errors import DataError, VideoError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
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
        return sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=_natural)
    return [path]


def size_of(path: Path) -> int:
    """Bytes of all files behind a clip's path; 0 where there are none."""
    if str(path) in ("", "."):
        return 0
    return sum(p.stat().st_size for p in files_of(path) if p.is_file())


def confined_files(root: Path, names: str | Sequence[str]) -> Path:
    """Resolve the file name or names of a clip, refusing anything outside the dataset's folder.

    Raises:
        DataError: if a name leads out of ``root`` (absolute path, ``..``, symbolic link).
    """
    base = root.resolve()
    resolved = []
    for name in [names] if isinstance(names, str) else names:
        if not name:
            raise DataError("a clip without a file name", do="name a video, a folder or pictures")
        odd = SEPARATOR in str(name) or "\x00" in str(name) or "://" in str(name) or len(str(name)) > 1000
        path = base if odd else (base / str(name)).resolve()
        inside = [p.resolve() for p in files_of(path)] if not odd and path.is_dir() else []
        if odd or not all(p.is_relative_to(base) for p in (path, *inside)):
            raise DataError(
                "a video path leads out of the data root",
                got=f"{str(name)[:200]!r} under {root}",
                do="keep videos below data.root and name them relative to it",
            )
        resolved.append(str(path))
    if not resolved:
        raise DataError("a clip without a file name", do="name a video, a folder or pictures")
    return Path(SEPARATOR.join(resolved))


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
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise VideoError(f"{file}: not a readable picture", got=str(error), do="replace or remove the file") from error


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(p.isdigit()), int(p) if p.isdigit() else 0, p) for p in parts]
