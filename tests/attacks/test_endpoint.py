"""Answers of a hostile endpoint: bounded in time, size and money, one clear outcome each."""

import contextlib
import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dashvlm.endpoint.client import Teacher
from dashvlm.endpoint.exchange import MAX_ANSWER_BYTES
from dashvlm.errors import TeacherError
from tests.conftest import Trials

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it close?"}]}]
FRAMES = np.zeros((1, 16, 16, 3), np.uint8)
OPTIONS = {
    "model": "m", "max_tokens": 16, "temperature": 0, "detail": "low", "concurrency": 1, "timeout_s": 3.0,
    "settle_s": 0.0, "retries": 0, "max_backoff_s": 0.1, "usd_per_million_in": 1000.0, "usd_per_million_out": 1000.0,
    "image_tokens": {"base": 85, "tile": 170}, "cap_usd": 1000.0, "store": False,
}  # fmt: skip


def completion(**changed):
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102},
    }  # fmt: skip
    return {**body, **changed}


class Hostile(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen = answer, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.server.answer(self)

    do_GET = do_POST

    def send(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def endless(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def endless_error(handler):
    handler.send_response(500)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


BOMB = gzip.compress(json.dumps(completion(padding="x" * (64 << 20))).encode())
REFUSED = {
    "a compressed bomb": lambda h: h.send(BOMB, Content_Encoding="gzip"),
    "an endless answer": endless,
    "an endless error": endless_error,
    "a dripping answer": dripping,
    "a deep answer": lambda h: h.send(b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a large answer": lambda h: h.send(completion(padding="x" * (MAX_ANSWER_BYTES + 1))),
    "no object": lambda h: h.send([completion()]),
    "choices of another form": lambda h: h.send(completion(choices=["Yes"])),
    "a deep error": lambda h: h.send(b"[" * 100_000, status=400),
}  # fmt: skip
CHARGED = {
    "negative usage": {"prompt_tokens": -1_000_000, "completion_tokens": -5},
    "absurd usage": {"prompt_tokens": 10**30, "completion_tokens": 0},
    "usage of text": {"prompt_tokens": "free", "completion_tokens": None},
    "usage that is true": {"prompt_tokens": True, "completion_tokens": False},
    "no usage for pictures": {"prompt_tokens": 0, "completion_tokens": 0},
    "usage that is no object": [1, 2],
}  # fmt: skip


def teacher(server, tmp_path, monkeypatch, **changed):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    return Teacher({**OPTIONS, "base_url": server.url, **changed}, tmp_path / "cache", tmp_path / "spent.jsonl")


def ask(one, text="Is it close?"):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    return one.ask([one.request(chat, lambda: FRAMES)], (16, 16))[0]


def test_hostile_answers_are_bounded(tmp_path, monkeypatch):
    with Trials("hostile endpoint") as trials:
        for number, (name, answer) in enumerate(REFUSED.items()):
            started = time.perf_counter()
            one = teacher(Hostile(answer), tmp_path / str(number), monkeypatch)
            reply = ask(one)
            quick = time.perf_counter() - started < 8
            kept = list((tmp_path / str(number) / "cache").glob("*.json"))
            trials.check(reply is None and quick and not kept and one.tally.failures, (name, reply, one.tally))
        for number, (name, usage) in enumerate(CHARGED.items()):
            one = teacher(Hostile(lambda h, u=usage: h.send(completion(usage=u))), tmp_path / f"c{number}", monkeypatch)
            most = one.estimate(one.request(CHAT, lambda: FRAMES), (16, 16))
            reply = ask(one)
            trials.check(reply is not None and one.tally.spent_usd == pytest.approx(most) and most > 0, name)


def test_no_usage_lifts_the_cap(tmp_path, monkeypatch):
    """However little, or less than nothing, an endpoint claims: spending never goes down, and the cap holds."""
    server = Hostile(lambda h: h.send(completion(usage={"prompt_tokens": -(10**6), "completion_tokens": 0})))
    one = teacher(server, tmp_path, monkeypatch, cap_usd=1.0)
    requests = [one.request([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": str(n)}]}],
                            lambda: FRAMES) for n in range(50)]  # fmt: skip
    one.ask(requests, (16, 16))
    assert one.tally.capped
    assert one.tally.spent_usd <= 1.0
    assert len(server.seen) < 50


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_gets_no_picture_and_no_key(tmp_path, monkeypatch, status):
    thief = Hostile(lambda h: h.send(completion()))
    server = Hostile(lambda h: h.send({}, status=status, Location=f"http://localhost:{thief.server_port}/v1/x"))
    with pytest.raises(TeacherError, match="redirects") as error:
        ask(teacher(server, tmp_path, monkeypatch))
    assert "set teacher.base_url" in error.value.do
    assert "sk-canary" not in str(error.value)
    assert thief.seen == []


@pytest.mark.parametrize("said", ["1e9", "nan", "-5", "inf", "99999999999999999999", "Fri, 01 Jan 2999 00:00:00 GMT"])
def test_a_wait_is_bounded(said):
    from dashvlm.endpoint.exchange import MAX_WAIT_S, retry_after

    for header in ("retry-after", "retry-after-ms"):
        wait = retry_after({header: said})
        assert wait is None or 0 <= wait <= MAX_WAIT_S


def test_log_probabilities_that_are_none_are_left_out(tmp_path, monkeypatch):
    odd = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": 1e9}, {"token": "a", "logprob": "x"},
           {"token": "b", "logprob": float("-inf")}, "c", {"token": "d", "logprob": True}]  # fmt: skip
    choices = completion()["choices"]
    choices[0]["logprobs"] = {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": odd}]}
    server = Hostile(lambda h: h.send(json.dumps(completion(choices=choices)).encode()))
    assert ask(teacher(server, tmp_path, monkeypatch)).first == {"Yes": -0.1}


def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path, monkeypatch):
    server = Hostile(lambda h: h.send(completion()))
    one = teacher(server, tmp_path, monkeypatch)
    assert ask(one).text == "Yes"
    (kept,) = (tmp_path / "cache").glob("*.json")
    for content in (b"", b"[" * 100_000, b'{"choices": 3}', b"\xff"):
        kept.write_bytes(content)
        assert ask(one).text == "Yes"
    assert len(server.seen) == 5
