"""Chats as JSON: ``{"messages": [{role, content}], "images": [...], "videos": [...]}``, one answer each.

Also as LLaMA-Factory and ShareGPT write them: ``conversations`` with ``from`` and ``value``, ``image`` or ``video``
for one file, ``<image>`` and ``<video>`` in the text, a system turn, lists of parts as content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.clip import SPLITS
from dashvlm.data.formats.bvpi import truth_of_text
from dashvlm.data.rows import Row, group_of
from dashvlm.data.textfiles import json_file, json_lines
from dashvlm.errors import DataError
from dashvlm.text.parsing import parse_letter, parse_yes_no

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
         "system": "system"}  # fmt: skip
_MARK = re.compile(r"\s*</?(?:image|video)>\s*")
_OPTION = re.compile(r"^\s*([A-Z])[.):]\s+(.+?)\s*$", re.MULTILINE)


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a chat.

    The answer is what is taught and compared with, whatever the task makes of it: a caption or description, an
    annotated scene, yes or no, or a letter where the question ends with lettered options.

    Args:
        root: folder with ``train``, ``val`` and ``test`` as ``.jsonl`` or ``.json``; files are named relative to it.
        options: ``file`` and ``split``: one file instead; ``group_regex``, whose first group names the recording in
            a file's name; ``encoding``.

    Raises:
        DataError: if there is no file.
    """
    if options.get("file"):
        yield from _rows(root / str(options["file"]), options.get("split"), options)
        return
    files = [(s, p) for s in SPLITS for p in (root / f"{s}.jsonl", root / f"{s}.json") if p.is_file()]
    if not files:
        raise DataError(
            f"data=messages: no train, val or test file in {root}",
            do="put train.jsonl, val.jsonl and test.jsonl there, or name data.options.file",
        )
    for split, path in files:
        yield from _rows(path, split, options)


def _rows(path: Path, split: str | None, options: Mapping[str, Any]) -> Iterator[Row]:
    if path.suffix.lower() == ".jsonl":
        items = json_lines(path, options.get("encoding"))
    else:
        whole = json_file(path, options.get("encoding"))
        items = ((n, item, None) for n, item in enumerate(whole if isinstance(whole, list) else [whole], 1))
    for number, item, wrong in items:
        row: Row = {"clip_id": f"{path.stem}:{number}", "video": "", **({"split": split} if split else {})}
        if not wrong and not isinstance(item, Mapping):
            wrong = "not an object"
        yield {**row, "problem": wrong} if wrong else {**row, **_row(item, split, options.get("group_regex"))}


def _row(item: Mapping[str, Any], split: str | None, pattern: str | None) -> Row:
    chat = item.get("messages") or item.get("conversations")
    if isinstance(chat, list) and isinstance(item.get("system"), str) and item["system"].strip():  # LLaMA-Factory
        chat = [{"role": "system", "content": item["system"]}, *chat]
    media, wrong = _media(item, chat)
    turns, marks, why = _turns(chat)
    said = [text for role, text in turns if role == "assistant"]
    asked = [text for role, text in turns if role == "user"]
    if not why and not said and "chosen" in item and "rejected" in item:
        why = "a preference row; give pairs with data.pairs=FILE"
    elif not why and not wrong and marks and isinstance(media, list) and marks != len(media):
        why = f"{marks} <image> in the text for {len(media)} pictures"
    if wrong or why:
        return {"problem": why or wrong}
    first = media if isinstance(media, str) else media[0]
    row: Row = {"video": media, "group": str(item.get("group") or group_of(first, pattern))}
    if item.get("id") is not None:
        row["clip_id"] = str(item["id"])
    if len(asked) != 1 or len(said) > 1 or (said and turns[-1][0] != "assistant"):
        return {**row, "problem": f"{len(asked)} questions and {len(said)} answers in one chat; split it into several"}
    question = "\n".join(text for role, text in turns if role != "assistant")
    choices, plain_question = _choices(question)
    if "question" in item:  # of a file that we wrote, whose text is the whole prompt
        given = item.get("choices")
        choices = [str(c) for c in given] if isinstance(given, list) else []
        plain_question = question = item["question"] if isinstance(item["question"], str) else ""
    row |= {"question": (plain_question if choices else question) or None}
    if choices:
        row["choices"] = choices
    if not said or not said[0]:
        return row | ({"problem": "no answer"} if split == "train" else {})
    return row | _answer(said[0], choices)


def _answer(text: str, choices: list[str]) -> Row:
    """What an answer is to each task that may read it."""
    truth = truth_of_text(text)
    extra: dict[str, Any] = {"caption": text, "response": text, "annotation": text}
    extra |= {"navigation": truth.to_dict()} if truth else {"style": "caption"}
    found: Row = {"label": parse_yes_no(text)[0], "extra": extra}
    if choices:
        extra["answer"] = parse_letter(text, len(choices))[0]
    return found


def _media(item: Mapping[str, Any], chat: Any) -> tuple[Any, str | None]:
    """One video, or the pictures in order; or what is wrong."""
    found, parts = [], _parts(chat)
    if parts and not any(item.get(k) for k in ("image", "images", "video", "videos")):
        item = {"images": [v for k, v in parts if k == "image"], "videos": [v for k, v in parts if k == "video"]}
    for one, many in (("image", "images"), ("video", "videos")):
        value = item.get(many) if item.get(many) is not None else item.get(one)
        found.append([value] if isinstance(value, str) else list(value) if isinstance(value, list) else [])
    images, videos = found
    if len(videos) == 1 and isinstance(videos[0], list):  # a video as its frames
        images, videos = images + videos[0], []
    if not all(isinstance(name, str) and name for name in [*images, *videos]):
        return None, "images and videos must be names of files"
    if len(videos) > 1 or (videos and images) or not (videos or images):
        return None, f"{len(images)} images and {len(videos)} videos; a row needs pictures or one video"
    return (videos[0] if videos else images[0] if len(images) == 1 else images), None


def _parts(chat: Any) -> list[tuple[str, Any]]:
    """Pictures and videos within the content of turns: ``image``, ``image_url`` or ``video`` and the file."""
    found = []
    for turn in chat if isinstance(chat, list) else ():
        content = turn.get("content") if isinstance(turn, Mapping) else None
        for part in content if isinstance(content, list) else ():
            for kind in ("image", "image_url", "video") if isinstance(part, Mapping) else ():
                file = part.get(kind)
                file = file.get("url") if isinstance(file, Mapping) else file
                if isinstance(file, str):
                    found.append((kind.removesuffix("_url"), file))
    return found


def _turns(chat: Any) -> tuple[list[tuple[str, str]], int, str | None]:
    """Role and text of each turn, and how many pictures are marked in the text; or what is wrong."""
    if not isinstance(chat, list) or not chat:
        return [], 0, "no messages"
    turns, marks = [], 0
    for turn in chat:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if isinstance(content, list):
            parts = [p.get("text") for p in content if isinstance(p, Mapping) and p.get("type") == "text"]
            content = "\n".join(str(p) for p in parts)
        if role not in ROLES or not isinstance(content, str):
            return [], 0, f"a turn of {str(role)[:40]!r} without text, or of an unknown role"
        marks += content.count("<image>")
        turns.append((ROLES[role], _MARK.sub("\n", content).strip()))
    return turns, marks, None


def _choices(question: str) -> tuple[list[str], str]:
    """Lettered options at the end of a question, and the question without them."""
    found = list(_OPTION.finditer(question))
    letters = "".join(m.group(1) for m in found)
    if len(found) < 2 or not "ABCDEFGH".startswith(letters):
        return [], question
    rest = question[found[-1].end() :].strip()
    head = question[: found[0].start()].strip()
    return [m.group(2) for m in found], f"{head}\n{rest}".strip()
