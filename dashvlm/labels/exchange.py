"""What is exchanged with a teacher: requests, replies, what they cost; files that survive a crash."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import io
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is asked. Equal requests have equal keys.

    Attributes:
        key: SHA-256 of everything that decides the answer, the endpoint's address included.
        body: makes what is sent; pictures are encoded when they are needed, not kept.
        num_images: pictures.
        num_chars: characters of text.
    """

    key: str
    body: Callable[[], Json]
    num_images: int
    num_chars: int


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the answer; empty if there was none.
        refused: the endpoint's own refusal field, or a stop by its filter.
        finish: why it ended.
        tokens: prompt and completion tokens.
        cost_usd: by the prices of the configuration.
        cached: whether it was known already, and so cost nothing now.
        first: log-probabilities of the first token's alternatives, if asked for.
    """

    text: str
    refused: bool
    finish: str
    tokens: tuple[int, int]
    cost_usd: float
    cached: bool = False
    first: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Tally:
    """What asking has cost so far."""

    spent_usd: float = 0.0
    paid: int = 0
    cached: int = 0
    recovered: int = 0
    asked_again: int = 0
    retries: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    capped: bool = False


def write_safely(path: Path, text: str) -> None:
    """Write a file so that it is whole or absent after a crash."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{random.getrandbits(32):08x}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        said = headers["retry-after"]
        if not said.strip().replace(".", "").isdigit():  # a date
            return min(max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time()), 600.0)
        return min(float(said), 600.0)
    except (KeyError, ValueError, TypeError):
        return None


def sum_of(ledger: Path | None) -> float:
    """What a ledger adds up to; a torn last line is left out."""
    total = 0.0
    if ledger is not None and ledger.is_file():
        for line in ledger.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                total += float(json.loads(line)["usd"])
    return total


def data_url(frame: Any) -> str:
    """A frame as a JPEG in an address."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def without_images(message: Json) -> Json:
    """A message's text parts."""
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [p for p in content if p["type"] == "text"]}


def slim(body: Json) -> Json:
    """What is kept of an answer."""
    return {k: body.get(k) for k in ("id", "model", "created", "choices", "usage")}
