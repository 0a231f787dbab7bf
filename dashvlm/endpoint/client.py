"""A teacher behind an OpenAI-compatible endpoint: every answer is paid for once and never lost.

Before a request leaves, a marker says so; its answer is in the cache before anyone sees it. A request
whose marker has no answer (the process was killed, the line dropped, the body was cut off) may have
been paid for: the endpoint is asked for the stored completion with that key before it is asked again.
The cache is addressed by the content of the request, pictures included.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai

from dashvlm.data.clip import FrameArray, Messages
from dashvlm.endpoint.exchange import (
    Json,
    Reply,
    Request,
    Tally,
    data_url,
    http_client,
    log_probabilities,
    retry_after,
    slim,
    sum_of,
    used_tokens,
    without_images,
    write_safely,
)
from dashvlm.errors import ConfigError, DashVLMError, DataError, TeacherError
from dashvlm.safety.files import read_json

log = logging.getLogger(__name__)
MALFORMED = (ValueError, LookupError, AttributeError, TypeError, RecursionError, OverflowError)
"""What an answer of another form than asked for leads to."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Teacher:
    """Asks an endpoint.

    Args:
        options: the ``teacher`` group: ``model, base_url, max_tokens, temperature, detail, concurrency, timeout_s,
            settle_s, retries, max_backoff_s, usd_per_million_in, usd_per_million_out, image_tokens, cap_usd, store``.
        cache: folder of paid answers.
        ledger: file of what was spent, a line a call; its sum counts towards the cap. None begins at nothing.
        needs_key: whether something will be asked.

    Raises:
        ConfigError: without a key in the environment, or with credentials in the address.
    """

    def __init__(
        self, options: Mapping[str, Any], cache: Path, ledger: Path | None = None, needs_key: bool = True
    ) -> None:
        self.options, self.cache, self.ledger = options, cache, ledger
        self.tally = Tally(sum_of(ledger))
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and needs_key:
            raise ConfigError(
                "the teacher needs a key, and there is none", got="OPENAI_API_KEY is not set",
                do="export OPENAI_API_KEY=...; any word does for a local server without keys",
            )  # fmt: skip
        # A short word is no secret: local servers take any.
        leaked = len(self._key) >= 16 and self._key in json.dumps(dict(options), default=str)
        if "@" in str(options["base_url"]) or leaked:
            raise ConfigError(
                "the configuration of the teacher holds credentials", do="keep the key in OPENAI_API_KEY alone"
            )
        self._reserved = 0.0
        self._running: dict[str, asyncio.Future[Reply | None]] = {}
        self._can_look_up = bool(options["store"])
        cache.mkdir(parents=True, exist_ok=True)

    # -- requests ------------------------------------------------------------------------------

    def request(
        self, chat: Messages, read: Callable[[], FrameArray], system: str = "", logprobs: bool = False
    ) -> Request:
        """Turn a chat into a request.

        Args:
            chat: the i-th image part stands for the i-th frame.
            read: gives the frames, uint8 [T, H, W, 3]; called for the key and again when the request is sent, so
                that thousands of waiting requests hold no pictures.
            system: text before the chat.
            logprobs: ask for the alternatives of the first token.
        """
        body = self._body(chat, read(), system, logprobs)
        key = hashlib.sha256(json.dumps([str(self.options["base_url"]), body], sort_keys=True).encode())
        chars = len(json.dumps([without_images(m) for m in body["messages"]]))
        return Request(
            key.hexdigest()[:32],
            functools.partial(self._built, chat, read, system, logprobs),  # picklable: a loader's worker makes it
            sum(p["type"] == "image" for turn in chat for p in turn["content"]),
            chars,
        )

    def _built(self, chat: Messages, read: Callable[[], FrameArray], system: str, logprobs: bool) -> Json:
        return self._body(chat, read(), system, logprobs)

    def _body(self, chat: Messages, frames: FrameArray, system: str, logprobs: bool) -> Json:
        shown = iter(frames)
        messages: list[Json] = [{"role": "system", "content": system}] if system else []
        for turn in chat:
            parts: list[Json] = []
            for part in turn["content"]:
                if part["type"] == "image":
                    url = {"url": data_url(next(shown)), "detail": self.options["detail"]}
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
        return body

    def estimate(self, request: Request, size: tuple[int, int]) -> float:
        """The most a request can cost in USD; tokens of pictures [height, width] by the endpoint's formula."""
        height, width = size
        rule = self.options["image_tokens"]
        tiles = math.ceil(width / 512) * math.ceil(height / 512) if self.options["detail"] != "low" else 0
        tokens = request.num_chars / 3 + request.num_images * (rule["base"] + rule["tile"] * tiles)
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
            timeout=float(self.options["timeout_s"]), http_client=http_client(str(self.options["base_url"])),
        ) as client:  # fmt: skip

            async def work() -> None:
                while waiting:
                    number = waiting.pop()
                    reply = await self._once(client, requests[number], self.estimate(requests[number], size))
                    if reply is not None:
                        replies[number] = reply
                        on_reply(number, reply)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(int(self.options["concurrency"])):
                        group.create_task(work())
            except* DashVLMError as errors:
                raise errors.exceptions[0] from None
            except* OSError as errors:
                raise TeacherError(
                    "an answer cannot be written", got=str(errors.exceptions[0]), do="make room, then run it again"
                ) from None
        return replies

    async def _once(self, client: openai.AsyncOpenAI, request: Request, most_usd: float) -> Reply | None:
        """Answer a request; an equal one that is on its way is waited for instead of asked again."""
        while (other := self._running.get(request.key)) is not None:
            await other
        self._running[request.key] = asyncio.get_running_loop().create_future()
        try:
            return await self._answer(client, request, most_usd)
        finally:
            self._running.pop(request.key).set_result(None)

    async def _answer(self, client: openai.AsyncOpenAI, request: Request, most_usd: float) -> Reply | None:
        kept = self._read(request)
        if kept is not None:
            self.tally.cached += 1
            return kept
        if self._marker(request).exists():
            found = await self._look_up(client, request, most_usd, float(self.options["settle_s"]))
            if found is not None:
                return found
            self.tally.asked_again += 1
            self._book(request, "perhaps paid", most_usd)
        return await self._try(client, request, most_usd)

    async def _try(self, client: openai.AsyncOpenAI, request: Request, most_usd: float) -> Reply | None:
        problem = ""
        for attempt in range(int(self.options["retries"]) + 1):
            if self.tally.spent_usd + self._reserved + most_usd > float(self.options["cap_usd"]):
                self.tally.capped = True
                return None
            self.tally.retries += attempt > 0
            self._reserved += most_usd
            try:
                reply, problem, pause = await self._attempt(client, request, most_usd, attempt)
            finally:
                self._reserved -= most_usd
            if reply is not None:
                return reply
            if pause is None:
                break
            if attempt < int(self.options["retries"]):
                await asyncio.sleep(pause)
                if self._marker(request).exists():  # it may have been answered after all
                    found = await self._look_up(client, request, most_usd, settle_s=0.0)
                    if found is not None:
                        return found
                    self._book(request, "perhaps paid", most_usd)
        self.tally.failures[problem] = self.tally.failures.get(problem, 0) + 1
        return None

    async def _attempt(
        self, client: openai.AsyncOpenAI, request: Request, most_usd: float, attempt: int
    ) -> tuple[Reply | None, str, float | None]:
        """One call: the reply, or what went wrong and how long to wait (None: there is no sense in waiting)."""
        self._mark(request)
        pause = min(2.0**attempt * random.uniform(0.5, 1.0), float(self.options["max_backoff_s"]))
        try:
            async with asyncio.timeout(float(self.options["timeout_s"])):
                raw = await client.chat.completions.with_raw_response.create(**self._sent(request))
                body = json.loads(raw.content)
            return self._keep(request, body, most_usd), "", 0.0
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}"
            if error.status_code < 500 and error.status_code != 408:
                self._marker(request).unlink(missing_ok=True)  # refused before any work was done
            self._stop_if_hopeless(error)
            if error.status_code not in RETRIED:
                return None, f"{problem}: {self._clean(str(error))}", None
            return None, problem, retry_after(error.response.headers) or pause
        except (TimeoutError, openai.OpenAIError, httpx.HTTPError, *MALFORMED) as error:
            problem = f"{type(error).__name__}: {self._clean(str(error))}"[:160]
            log.warning("no answer (%s), call %d of %d", problem, attempt + 1, int(self.options["retries"]) + 1)
            found = await self._look_up(client, request, most_usd, float(self.options["settle_s"]), lost_now=True)
            return found, problem, pause

    def _sent(self, request: Request) -> Json:
        if not self.options["store"]:
            return request.body()
        return {**request.body(), "store": True, "metadata": {"dashvlm_key": request.key}}

    def _stop_if_hopeless(self, error: openai.APIStatusError) -> None:
        code = str(getattr(error, "code", "") or "")
        if 300 <= error.status_code < 400:
            raise TeacherError(
                f"the endpoint {self.options['base_url']} redirects, which is not followed with pictures and a key",
                got=self._clean(f"HTTP {error.status_code} to {error.response.headers.get('location', '?')}")[:300],
                do="if you trust that address, set teacher.base_url to it",
            ) from None
        if error.status_code in (401, 403) or code in ("insufficient_quota", "model_not_found"):
            raise TeacherError(
                f"the endpoint {self.options['base_url']} refuses model {self.options['model']}",
                got=f"HTTP {error.status_code}: {self._clean(str(error))}"[:300],
                do="check OPENAI_API_KEY, teacher.model, teacher.base_url and your quota; what was paid for is kept",
            ) from None

    async def _look_up(
        self,
        client: openai.AsyncOpenAI,
        request: Request,
        most_usd: float,
        settle_s: float,
        lost_now: bool = False,
    ) -> Reply | None:
        """Find the stored completion of a request that may have been answered; None if there is none.

        The endpoint may still be at work on it, so it is looked for until ``settle_s`` after it was lost.
        """
        marker = self._marker(request)
        lost = time.time() if lost_now or not marker.exists() else marker.stat().st_mtime
        pause = 0.25
        while self._can_look_up:
            try:
                async with asyncio.timeout(float(self.options["timeout_s"])):
                    page = await client.chat.completions.list(metadata={"dashvlm_key": request.key}, limit=1)
                if page.data:
                    reply = self._keep(request, page.data[0].model_dump(), most_usd)
                    self.tally.recovered += 1
                    return reply
            except openai.APIStatusError as error:
                if error.status_code not in RETRIED:
                    self._can_look_up = False  # the endpoint stores nothing
                    break
            except (TimeoutError, openai.OpenAIError, httpx.HTTPError, *MALFORMED):
                pass
            if time.time() > lost + settle_s:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
        return None

    # -- the cache -----------------------------------------------------------------------------

    def _keep(self, request: Request, body: Json, most_usd: float) -> Reply:
        """Write an answer to the cache, then count it."""
        reply = self._reply(body, most_usd)  # a body that is no answer must not be kept
        self._book(request, "answer", reply.cost_usd)
        write_safely(self._file(request), json.dumps(slim(body), ensure_ascii=False))
        self._marker(request).unlink(missing_ok=True)
        self.tally.paid += 1
        return reply

    def _book(self, request: Request, what: str, usd: float) -> None:
        """Count money, on the disk too: a killed run's spending counts towards the cap of the next."""
        self.tally.spent_usd += usd
        if self.ledger is not None:
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": request.key, "what": what, "usd": usd}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _read(self, request: Request) -> Reply | None:
        path = self._file(request)
        if not path.is_file():
            return None
        try:
            reply = self._reply(read_json(path))
        except (DataError, *MALFORMED) as error:
            log.warning("the kept answer %s is damaged (%s) and asked for again", path, type(error).__name__)
            path.replace(path.with_suffix(".damaged"))
            return None
        return Reply(reply.text, reply.refused, reply.finish, reply.tokens, 0.0, True, reply.first)

    def _reply(self, body: Json, most_usd: float = 0.0) -> Reply:
        """Read an answer; one that does not say, or cannot have used, what it says counts as the dearest."""
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list) or any(not isinstance(c, dict) for c in choices):
            raise ValueError("the body is no completion")
        tokens = used_tokens(body)
        cost = most_usd if tokens is None else self._price(*tokens)
        first = choices[0] if choices else {}
        message = first.get("message") or {}
        return Reply(
            str(message.get("content") or ""),
            bool(message.get("refusal")) or first.get("finish_reason") == "content_filter",
            str(first.get("finish_reason") or ""), tokens or (0, 0), cost, first=log_probabilities(first),
        )  # fmt: skip

    def _file(self, request: Request) -> Path:
        return self.cache / f"{request.key}.json"

    def _marker(self, request: Request) -> Path:
        return self.cache / f"{request.key}.asked"

    def _mark(self, request: Request) -> None:
        write_safely(self._marker(request), "")

    def _clean(self, text: str) -> str:
        # A short word is no secret, and cutting it out would garble the message.
        return " ".join((text.replace(self._key, "***") if len(self._key) >= 8 else text).split())
