"""RoadBuddy, the Zalo AI challenge on driving questions in Vietnamese: ``train.json``, ``public_test.json``.

Layout: ``train/train.json`` and ``public_test/public_test.json`` with ``{"__count__", "data": [{id,
question, choices, answer, support_frames, video_path}]}``; the test has neither answers nor
support frames. Videos lie where ``video_path`` says, below the root or the file's folder.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.rows import Row, parse_seconds
from dashvlm.data.textfiles import json_file
from dashvlm.errors import DataError

MAX_CHOICES = 4  # the submission knows A to D
LETTERS = "ABCDEFGH"
# "A. x", "(a) x", "A) x", "1: x", in full-width characters too; "1.5 m" has no letter.
_OPTION = re.compile(r"^[(\[]?([A-H]|[1-8])\s*(?:[.):\]]|\s-\s)\s*(?!\d)(.*)$", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"^[(\[]?([A-H])[.):\]]*$", re.IGNORECASE)
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
# "<id>_<recording>_clip_<number>_<start>_<end>_<Y|N>.mp4": clips of one recording look alike.
SOURCE = r"^[^_]+_([^_]+)_"


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a question.

    Args:
        root: the unpacked challenge.
        options: ``file``: ``train`` (split by group), ``public_test`` (all of it is the test
            split, without answers) or a ``.json`` below the root; ``group_by``: ``source`` recording or ``video``.

    Raises:
        DataError: if the file is missing or not in the challenge's layout.
    """
    name = str(options.get("file") or "train")
    if name not in ("train", "public_test") and not name.endswith(".json"):
        raise DataError("data.options.file must be train, public_test or a .json file", got=name)
    if name.endswith(".json"):
        if not (root / name).is_file():
            raise DataError(f"data.options.file={name} is not in {root}", do="name a file below data.root")
        yield from questions(root / name, root, False, options)
        return
    places = [root / name / f"{name}.json", root / f"{name}.json"]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise DataError(
            f"data=roadbuddy: {name}.json is missing", got=f"looked for {places[0]} and {places[1]}",
            do="unpack the challenge's archive and set data.root=FOLDER; or try data=synthetic",
        )  # fmt: skip
    yield from questions(path, root, name == "public_test", options)


def questions(path: Path, root: Path, test: bool, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for each question of one file.

    Args:
        path: JSON in the challenge's layout.
        root: folder that videos lie below.
        test: whether it is a test file, whose rows all stay and whose answers are not read.
        options: ``group_by`` and ``encoding`` as in :func:`rows`.

    Raises:
        DataError: if the file is not in the challenge's layout.
    """
    content = json_file(path, options.get("encoding"))
    items = content.get("data") if isinstance(content, Mapping) else content
    if not isinstance(items, list):
        raise DataError(f'{path} has no list "data"', got=type(content).__name__, do="download it again")
    said = content.get("__count__") if isinstance(content, Mapping) else None
    if isinstance(said, int) and said != len(items):
        raise DataError(f"{path} is incomplete", got=f"{len(items)} of {said} questions", do="download it again")
    for number, item in enumerate(items):
        yield _row(item, number, test, path, root, str(options.get("group_by") or "source"))


def _row(item: Any, number: int, test: bool, path: Path, root: Path, group_by: str) -> Row:
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
    if isinstance(choices, Mapping):  # {"A": "...", "B": "..."}
        choices = [f"{k}. {v}" if isinstance(v, str) else v for k, v in choices.items()]
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        return {**row, wrong: "choices are not a list of texts"}
    if not 2 <= len(choices) <= MAX_CHOICES:
        return {**row, wrong: f"{len(choices)} choices, 2 to {MAX_CHOICES} can be answered"}
    texts, letters = options_of(choices)
    if not all(texts):
        return {**row, wrong: "an option without text"}
    irregular = []
    # Without any letters the places count, which is nothing to report.
    if any(letters) and letters != list(LETTERS[: len(letters)]):
        unique = len({*letters}) == len(letters) and {*letters} <= set("ABCD")
        told = "shown by place, submitted as written" if unique else "numbered by place instead"
        irregular.append(f"letters {','.join(x or '–' for x in letters)}, {told}")
    extra: dict[str, Any] = {"letters": letters} if irregular and unique else {}
    if not test:
        answer = item.get("answer")
        answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        if answer in (None, ""):
            return {**row, "problem": "no answer"}
        if not isinstance(answer, str):
            return {**row, "problem": f"the answer is a {type(answer).__name__}, not a text"}
        same = choice_of(answer, texts, letters)
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
    try:
        return name if (root / name).is_file() or not (root / other).is_file() else other.as_posix()
    except OSError:  # too long for a file's name
        return name


def _group(video: str, group_by: str) -> str:
    name = Path(video.replace("\\", "/")).name
    found = re.search(SOURCE, name)
    return found.group(1) if found and group_by == "source" else Path(name).stem


def options_of(choices: list[str]) -> tuple[list[str], list[str | None]]:
    """Split the letters off the choices' texts, where they are letters: ``U. turn`` and ``T. junction`` are texts.

    Example:
        >>> options_of(["(a) Đỏ", "(b) Xanh"]), options_of(["1.5 m", "2.5 m"])
        ((['Đỏ', 'Xanh'], ['A', 'B']), (['1.5 m', '2.5 m'], [None, None]))
    """
    plain = [_clean(c) for c in choices]
    parts = [_OPTION.match(unicodedata.normalize("NFKC", p)) for p in plain]
    marks = [p.group(1).upper() if p else None for p in parts]
    if None not in marks and marks == [str(i + 1) for i in range(len(marks))]:
        return [_clean(p.group(2)) for p in parts if p], list(LETTERS[: len(marks)])
    lettered = sum(m is not None and m in LETTERS for m in marks)
    if 2 * lettered <= len(marks):
        return plain, [None] * len(marks)
    return (
        [_clean(p.group(2)) if p and m and m in LETTERS else t for p, m, t in zip(parts, marks, plain, strict=True)],
        [m if m and m in LETTERS else None for m in marks],
    )


def choice_of(answer: str, texts: list[str], letters: list[str | None]) -> list[int]:
    """Numbers of the choices that an answer can mean: a text, a letter, or both if they agree.

    Args:
        answer: as somebody wrote it.
        texts: of the choices; empty where only their letters are known.
        letters: of the choices, None for one without.
    """
    said = _clean(answer)
    same = [i for i, text in enumerate(texts) if _plain(text) == _plain(said)]
    if same:
        return same
    names = letters if any(letters) else list(LETTERS[: len(texts)])  # a letter may mean the place
    wide = unicodedata.normalize("NFKC", said)
    if found := _LETTER.match(wide):
        return [i for i, letter in enumerate(names) if letter == found.group(1).upper()]
    if found := _OPTION.match(wide):
        mark, text = found.group(1).upper(), _plain(found.group(2))
        mark = LETTERS[int(mark) - 1] if mark.isdigit() else mark
        return [i for i, letter in enumerate(names) if letter == mark and _plain(texts[i]) == text]
    return []


def _moments(value: Any) -> tuple[list[float], str]:
    """Read support times in seconds, numbers or texts of numbers: (ascending, what was irregular)."""
    if value is None or value == []:
        return [], ""
    numbers = value if isinstance(value, list) else [value]
    read = [parse_seconds(v)[0] for v in numbers if isinstance(v, int | float | str) and not isinstance(v, bool)]
    good = [v for v in read if v is not None and v < 1e6]
    notes = []
    if len(good) < len(numbers):
        notes.append(f"{len(numbers) - len(good)} support times are no times")
    if good != sorted(good):
        notes.append(f"support times unsorted: {good}")
    return sorted(good), "; ".join(notes)


def _clean(text: str) -> str:
    """One line without entities of HTML and invisible characters."""
    return " ".join(unicodedata.normalize("NFC", html.unescape(text).translate(_INVISIBLE)).split())


def _plain(text: str) -> str:
    """For comparing: without case and a full stop at the end."""
    return _clean(text).rstrip(".。 ").casefold()
