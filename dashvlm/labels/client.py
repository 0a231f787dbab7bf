"""A teacher behind an OpenAI-compatible endpoint: every answer is paid for once and never lost.

Before a request leaves, a marker says so; its answer is in the cache before anyone sees it. A request
whose marker has no answer (the process was killed, the line dropped, the body was cut off) may have
been paid for: the endpoint is asked for the stored completion with that key before it is asked again.
The cache is addressed by the content of the request, pictures included.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from dashvlm.data.clip import FrameArray, Messages
from dashvlm.errors import ConfigError, TeacherError

Json = dict[str, Any]
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True)
class Request:
    """What is asked. Equal requests have equal keys."""

    body: Json
    num_images: int = 0

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the answer."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()[:32]


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


class Teacher:
    """Asks an endpoint.

    Args:
        options: the ``teacher`` group: ``model, base_url, max_tokens, temperature, detail, concurrency, timeout_s,
            settle_s, retries, max_backoff_s, usd_per_million_in, usd_per_million_out, image_tokens, cap_usd, store``.
        cache: folder of paid answers.
        spent_usd: what counts towards the cap already.

    Raises:
        ConfigError: without a key in the environment, or with credentials in the address.
    """

    def __init__(self, options: Mapping[str, Any], cache: Path, spent_usd: float = 0.0) -> None:
        self.options, self.cache, self.tally = options, cache, Tally(spent_usd)
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key:
            raise ConfigError(
                "the teacher needs a key, and there is none", got="OPENAI_API_KEY is not set",
                do="export OPENAI_API_KEY=...; any word does for a local server without keys",
            )  # fmt: skip
        if "@" in str(options["base_url"]) or self._key in json.dumps(dict(options), default=str):
            raise ConfigError(
                "the configuration of the teacher holds credentials", do="keep the key in OPENAI_API_KEY alone"
            )
        self._reserved = 0.0
        self._can_look_up = bool(options["store"])
        cache.mkdir(parents=True, exist_ok=True)

    # -- requests ------------------------------------------------------------------------------

    def request(self, chat: Messages, frames: FrameArray, system: str = "", logprobs: bool = False) -> Request:
        """Turn a chat and its frames uint8 [T, H, W, 3] into a request."""
        shown = iter(frames)
        messages: list[Json] = [{"role": "system", "content": system}] if system else []
        for turn in chat:
            parts: list[Json] = []
            for part in turn["content"]:
                if part["type"] == "image":
                    url = {"url": _data_url(next(shown)), "detail": self.options["detail"]}
                    parts.append({"type": "image_url", "image_url": url})
                else:
                    parts.append({"type": "text", "text": part["text"]})
            messages.append({"role": turn["role"], "content": parts})
        body: Json = {
            "model": self.options["model"], "messages": messages, "temperature": self.options["temperature"],
            "max_tokens": int(self.options["max_tokens"]),
        }  # fmt: skip
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 20}
        return Request(body, len(frames))

    def estimate(self, request: Request, size: tuple[int, int]) -> float:
        """The most a request can cost in USD; tokens of pictures [height, width] by the endpoint's formula."""
        height, width = size
        texts = json.dumps([_without_images(m) for m in request.body["messages"]])
        rule = self.options["image_tokens"]
        tiles = math.ceil(width / 512) * math.ceil(height / 512) if self.options["detail"] != "low" else 0
        tokens = len(texts) / 3 + request.num_images * (rule["base"] + rule["tile"] * tiles)
        return self._price(tokens, int(self.options["max_tokens"]))

    def _price(self, tokens_in: float, tokens_out: float) -> float:
        return (
            tokens_in * float(self.options["usd_per_million_in"])
            + tokens_out * float(self.options["usd_per_million_out"])
        ) / 1e6

    # -- asking --------------------------------------------------------------------------------

    def known(self, request: Request) -> bool:
        """Whether the answer is in the cache."""
        return self._file(request).is_file()

    def ask(
        self, requests: Sequence[Request], size: tuple[int, int], on_reply: Callable[[int, Reply], None] | None = None
    ) -> list[Reply | None]:
        """Ask all, several at a time.

        Args:
            requests: what to ask.
            size: height and width of the pictures, for the reserve that the cap needs.
            on_reply: called with a request's number as soon as its answer is safe.

        Returns:
            The replies; None where the cap or failures left none.

        Raises:
            TeacherError: if the endpoint will not answer any request (wrong key, unknown model, no quota).
        """
        return asyncio.run(self._ask_all(requests, size, on_reply or (lambda number, reply: None)))

    async def _ask_all(
        self, requests: Sequence[Request], size: tuple[int, int], on_reply: Callable[[int, Reply], None]
    ) -> list[Reply | None]:
        replies: list[Reply | None] = [None] * len(requests)
        # Requests in doubt come last: by then the endpoint has finished with them.
        waiting = sorted(range(len(requests)), key=lambda i: self._marker(requests[i]).exists())
        waiting.reverse()
        async with openai.AsyncOpenAI(
            api_key=self._key, base_url=str(self.options["base_url"]), max_retries=0,
            timeout=float(self.options["timeout_s"]),
        ) as client:  # fmt: skip

            async def work() -> None:
                while waiting and not self.tally.capped:
                    number = waiting.pop()
                    reply = await self._answer(client, requests[number], self.estimate(requests[number], size))
                    if reply is not None:
                        replies[number] = reply
                        on_reply(number, reply)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(int(self.options["concurrency"])):
                        group.create_task(work())
            except* TeacherError as errors:
                raise errors.exceptions[0] from None
        return replies

    async def _answer(self, client: openai.AsyncOpenAI, request: Request, most_usd: float) -> Reply | None:
        kept = self._read(request)
        if kept is not None:
            self.tally.cached += 1
            return kept
        if self._marker(request).exists():
            found = await self._look_up(client, request)
            if found is not None:
                return found
            self.tally.asked_again += 1
        if self.tally.spent_usd + self._reserved + most_usd > float(self.options["cap_usd"]):
            self.tally.capped = True
            return None
        self._reserved += most_usd
        try:
            return await self._try(client, request)
        finally:
            self._reserved -= most_usd

    async def _try(self, client: openai.AsyncOpenAI, request: Request) -> Reply | None:
        problem = ""
        for attempt in range(int(self.options["retries"]) + 1):
            if attempt:
                self.tally.retries += 1
            self._mark(request)
            pause = min(2.0**attempt * random.uniform(0.5, 1.0), float(self.options["max_backoff_s"]))
            try:
                async with asyncio.timeout(float(self.options["timeout_s"])):
                    raw = await client.chat.completions.with_raw_response.create(**self._sent(request))
                    body = json.loads(raw.content)
                return self._keep(request, body)
            except openai.APIStatusError as error:
                # An error status is not paid for.
                self._marker(request).unlink(missing_ok=True)
                problem = f"HTTP {error.status_code}"
                self._stop_if_hopeless(error)
                if error.status_code not in RETRIED:
                    problem += f": {self._clean(str(error))}"
                    break
                pause = _retry_after(error.response.headers) or pause
            except (TimeoutError, openai.APIConnectionError, openai.OpenAIError, ValueError, KeyError) as error:
                problem = f"{type(error).__name__}: {self._clean(str(error))}"[:160]
                found = await self._look_up(client, request, lost_now=True)
                if found is not None:
                    return found
            if attempt < int(self.options["retries"]):
                await asyncio.sleep(pause)
        self.tally.failures[problem] = self.tally.failures.get(problem, 0) + 1
        return None

    def _sent(self, request: Request) -> Json:
        if not self.options["store"]:
            return request.body
        return {**request.body, "store": True, "metadata": {"dashvlm_key": request.key}}

    def _stop_if_hopeless(self, error: openai.APIStatusError) -> None:
        code = str(getattr(error, "code", "") or "")
        if error.status_code in (401, 403) or code in ("insufficient_quota", "model_not_found"):
            raise TeacherError(
                f"the endpoint {self.options['base_url']} refuses model {self.options['model']}",
                got=f"HTTP {error.status_code}: {self._clean(str(error))}"[:300],
                do="check OPENAI_API_KEY, teacher.model, teacher.base_url and your quota; what was paid for is kept",
            ) from None

    async def _look_up(self, client: openai.AsyncOpenAI, request: Request, lost_now: bool = False) -> Reply | None:
        """Find the stored completion of a request that may have been answered; None if there is none.

        The endpoint may still be at work on it, so it is looked for until ``settle_s`` after it was lost.
        """
        marker = self._marker(request)
        lost = time.time() if lost_now or not marker.exists() else marker.stat().st_mtime
        pause = 0.25
        while self._can_look_up:
            try:
                page = await client.chat.completions.list(metadata={"dashvlm_key": request.key}, limit=1)
                if page.data:
                    self.tally.recovered += 1
                    return self._keep(request, page.data[0].model_dump())
            except openai.APIStatusError as error:
                if error.status_code not in RETRIED:
                    self._can_look_up = False  # the endpoint stores nothing
                    break
            except (openai.OpenAIError, ValueError):
                pass
            if time.time() > lost + float(self.options["settle_s"]):
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
        return None

    # -- the cache -----------------------------------------------------------------------------

    def _keep(self, request: Request, body: Json) -> Reply:
        """Write an answer to the cache, then count it."""
        reply = self._reply(body)  # a body that is no answer must not be kept
        write_safely(self._file(request), json.dumps(_slim(body), ensure_ascii=False))
        self._marker(request).unlink(missing_ok=True)
        self.tally.paid += 1
        self.tally.spent_usd += reply.cost_usd
        return reply

    def _read(self, request: Request) -> Reply | None:
        path = self._file(request)
        if not path.is_file():
            return None
        reply = self._reply(json.loads(path.read_text(encoding="utf-8")))
        return Reply(reply.text, reply.refused, reply.finish, reply.tokens, 0.0, True, reply.first)

    def _reply(self, body: Json) -> Reply:
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        choices = body["choices"]
        if not isinstance(choices, list):
            raise ValueError("choices is no list")
        first = choices[0] if choices else {}
        message = first.get("message") or {}
        alternatives = ((first.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        return Reply(
            str(message.get("content") or ""),
            bool(message.get("refusal")) or first.get("finish_reason") == "content_filter",
            str(first.get("finish_reason") or ""), tokens, self._price(*tokens),
            first={str(a["token"]): float(a["logprob"]) for a in alternatives},
        )  # fmt: skip

    def _file(self, request: Request) -> Path:
        return self.cache / f"{request.key}.json"

    def _marker(self, request: Request) -> Path:
        return self.cache / f"{request.key}.asked"

    def _mark(self, request: Request) -> None:
        write_safely(self._marker(request), "")

    def _clean(self, text: str) -> str:
        return " ".join(text.replace(self._key, "***").split())


def write_safely(path: Path, text: str) -> None:
    """Write a file so that it is whole or absent after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _data_url(frame: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _without_images(message: Json) -> Json:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [p for p in content if p["type"] == "text"]}


def _slim(body: Json) -> Json:
    """What is kept of an answer."""
    return {k: body.get(k) for k in ("id", "model", "created", "choices", "usage")}
