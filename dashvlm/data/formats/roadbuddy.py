"""RoadBuddy, the Zalo AI challenge on driving questions in Vietnamese: ``train.json``, ``public_test.json``.

Layout: ``train/train.json`` and ``public_test/public_test.json`` with ``{"__count__", "data": [{id,
question, choices, answer, support_frames, video_path}]}``; the test has neither answers nor
support frames. Videos lie where ``video_path`` says, below the root or the file's folder.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.manifest import Row
from dashvlm.errors import DataError

MAX_CHOICES = 4  # the submission knows A to D
_OPTION = re.compile(r"^\s*([A-Z])\s*[.):]\s*(.*)$", re.DOTALL)
# "<id>_<recording>_clip_<number>_<start>_<end>_<Y|N>.mp4": clips of one recording look alike.
SOURCE = r"^[^_]+_([^_]+)_"


def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a question.

    Args:
        root: the unpacked challenge.
        options: ``file``: ``train`` (split by group) or ``public_test`` (all of it is the test
            split, without answers); ``group_by``: ``source`` recording or ``video``.

    Raises:
        DataError: if the file is missing or not in the challenge's layout.
    """
    name = str(options.get("file") or "train")
    if name not in ("train", "public_test"):
        raise DataError("data.options.file must be train or public_test", got=name)
    places = [root / name / f"{name}.json", root / f"{name}.json"]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise DataError(
            f"data=roadbuddy: {name}.json is missing", got=f"looked for {places[0]} and {places[1]}",
            do="unpack the challenge's archive and set data.root=FOLDER; or try data=synthetic",
        )  # fmt: skip
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", got=str(error), do="download it again") from error
    items = content.get("data") if isinstance(content, Mapping) else content
    if not isinstance(items, list):
        raise DataError(f'{path} has no list "data"', got=type(content).__name__, do="download it again")
    said = content.get("__count__") if isinstance(content, Mapping) else None
    if isinstance(said, int) and said != len(items):
        raise DataError(f"{path} is incomplete", got=f"{len(items)} of {said} questions", do="download it again")
    for number, item in enumerate(items):
        yield _row(item, number, name, path, root, str(options.get("group_by") or "source"))


def _row(item: Any, number: int, name: str, path: Path, root: Path, group_by: str) -> Row:
    test = name == "public_test"
    place = f"{path.name}[{number}]"
    split: Row = {"split": "test"} if test else {}
    if not isinstance(item, Mapping) or item.get("id") in (None, ""):
        return {"clip_id": place, **split, "problem": "no id"}
    row: Row = {"clip_id": str(item["id"]), **split}
    wrong = "failed" if test else "problem"  # a test row is answered all the same, by the fallback
    video, question, choices = item.get("video_path"), item.get("question"), item.get("choices")
    if not isinstance(video, str) or not video or len(video) > 1000:
        return {**row, "video": "", wrong: "no video_path"}
    row |= {"video": _beside(video, path, root), "group": _group(video, group_by)}
    if not isinstance(question, str) or not question.strip():
        return {**row, wrong: "no question"}
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        return {**row, wrong: "choices are not a list of texts"}
    if not 2 <= len(choices) <= MAX_CHOICES:
        return {**row, wrong: f"{len(choices)} choices, 2 to {MAX_CHOICES} can be answered"}
    texts, letters = zip(*(_option(c) for c in choices), strict=True)
    if not all(texts):
        return {**row, wrong: "an option without text"}
    irregular = []
    if list(letters) != [chr(ord("A") + i) for i in range(len(letters))]:
        unique = len({*letters}) == len(letters) and {*letters} <= set("ABCD")
        told = "shown by place, submitted as written" if unique else "numbered by place instead"
        irregular.append(f"letters {','.join(x or '–' for x in letters)}, {told}")
    extra: dict[str, Any] = {"letters": list(letters)} if irregular and unique else {}
    if not test:
        answer = item.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            return {**row, "problem": "no answer"}
        same = [i for i, choice in enumerate(choices) if _plain(choice) == _plain(answer)]
        if not same:
            same = [i for i, text in enumerate(texts) if _plain(text) == _plain(answer)]
        if not same:  # some releases give the letter alone
            same = [i for i, letter in enumerate(letters) if letter and letter == _plain(answer).rstrip(".")]
        if len(same) != 1:
            found = "is none of the choices" if not same else f"fits {len(same)} choices"
            return {**row, "problem": f"the answer {answer!r} {found}"}
        extra["answer"] = same[0]
    moments, note = _moments(item.get("support_frames"))
    irregular += [note] * bool(note)
    if moments:
        extra["support_frames"] = moments
    if irregular:
        extra["irregular"] = irregular
    return {**row, "question": _clean(question), "choices": list(texts), "extra": extra}


def _beside(video: str, path: Path, root: Path) -> str:
    """The video's name below the root: as written, or beside the JSON file."""
    name = video.replace("\\", "/").removeprefix("./")
    other = path.parent.relative_to(root) / name
    return name if (root / name).is_file() or not (root / other).is_file() else other.as_posix()


def _group(video: str, group_by: str) -> str:
    name = Path(video.replace("\\", "/")).name
    found = re.search(SOURCE, name)
    return found.group(1) if found and group_by == "source" else Path(name).stem


def _option(text: str) -> tuple[str, str | None]:
    found = _OPTION.match(text)
    return (_clean(found.group(2)), found.group(1)) if found else (_clean(text), None)


def _moments(value: Any) -> tuple[list[float], str]:
    """Read support times in seconds: (ascending, what was irregular)."""
    if value is None or value == []:
        return [], ""
    numbers = value if isinstance(value, list) else [value]
    good = [float(v) for v in numbers if isinstance(v, int | float) and 0 <= v < 1e6]
    notes = []
    if len(good) < len(numbers):
        notes.append(f"{len(numbers) - len(good)} support times are no times")
    if good != sorted(good):
        notes.append(f"support times unsorted: {good}")
    return sorted(good), "; ".join(notes)


def _clean(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _plain(text: str) -> str:
    return _clean(text).lower() if len(text) > 2 else _clean(text)
