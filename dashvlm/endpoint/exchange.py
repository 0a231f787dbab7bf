"""What is exchanged with a teacher: requests, replies, what they cost; files that survive a crash.

An endpoint is not trusted: how long it may make us wait, how much it may send and what it may claim to have used are
bounded here.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import io
import json
import math
import os
import random
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
from PIL import Image

Json = dict[str, Any]
MAX_WAIT_S = 600.0
"""Longest pause that an endpoint can ask for."""
MAX_ANSWER_BYTES = 8 << 20
MAX_TOKENS = 10_000_000
"""More than any request uses; what claims more is not believed."""


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
    """Seconds that the endpoint asks to wait, at most :data:`MAX_WAIT_S`; None if it says nothing sensible.

    Example:
        >>> [retry_after({"retry-after": x}) for x in ("2", "-1", "nan", "1e99", "soon")]
        [2.0, None, None, 600.0, None]
    """
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        else:
            try:
                wait = float(headers["retry-after"])
            except ValueError:  # a date
                wait = max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return min(wait, MAX_WAIT_S) if wait >= 0 else None


def used_tokens(body: Json) -> tuple[int, int] | None:
    """Prompt and completion tokens that an answer says it used; None if that cannot be true.

    Example:
        >>> used_tokens({"usage": {"prompt_tokens": 7, "completion_tokens": 2}})
        (7, 2)
        >>> used_tokens({"usage": {"prompt_tokens": -7, "completion_tokens": 2}}) is None
        True
    """
    usage = body.get("usage")
    said = [usage.get(k) for k in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MAX_TOKENS for n in said) or said[0] == 0:
        return None
    return int(said[0]), int(said[1])  # type: ignore[arg-type]


def log_probabilities(choice: Json) -> dict[str, float]:
    """Log-probabilities of the alternatives of the first token, those that are some."""
    node: Any = choice.get("logprobs")
    for key, kind in (("content", list), (0, dict), ("top_logprobs", list)):
        try:
            node = node[key]
        except (LookupError, TypeError):
            return {}
        if not isinstance(node, kind):
            return {}
    found: dict[str, float] = {}
    for one in node:
        value = one.get("logprob") if isinstance(one, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value <= 1e-6:
            found[str(one.get("token"))] = float(value)
    return found


class _Bounded(httpx.AsyncByteStream):
    """A body that ends with an error where it becomes too long."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self.stream:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise httpx.RemoteProtocolError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MB")
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()


class _Transport(httpx.AsyncHTTPTransport):
    """HTTP without compressed bodies, which may hold a thousand times what was sent."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            await response.aclose()
            raise httpx.RemoteProtocolError("a compressed answer, which was not asked for")
        response.stream = _Bounded(response.stream)
        return response


def http_client(base_url: str) -> httpx.AsyncClient:
    """The connection to an endpoint: bounded, through the environment's proxy, following no redirect."""
    where = urllib.parse.urlsplit(base_url)
    known = urllib.request.getproxies()
    proxy = None if urllib.request.proxy_bypass(where.hostname or "") else known.get(where.scheme) or known.get("all")
    return openai.DefaultAsyncHttpxClient(transport=_Transport(proxy=proxy), follow_redirects=False)


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
