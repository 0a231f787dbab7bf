"""A real OpenAI-compatible endpoint over HTTP on loopback, with every way such an endpoint can misbehave.

Runs in a process of its own, so that a killed client leaves it standing: ``python tests/teacher_server.py FOLDER
[PLAN]``. It writes its port to ``FOLDER/port`` and a line a paid answer to ``FOLDER/paid.jsonl``. PLAN is a JSON list
of misbehaviours, one a request, then behaving: 429, 500, "timeout", "half", "drip", "empty", "refusal", "prose",
"drop". Answers are stored under ``metadata.dashvlm_key`` and listed by ``GET /v1/chat/completions``.
"""

import base64
import io
import json
import random
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

LOCK = threading.Lock()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder, plan, latency=0.05, stores=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.plan, self.latency, self.stores = folder, list(plan), latency, stores
        self.stored, self.seen = {}, []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        if not self.server.stores:
            return self.reply(404, {"error": {"message": "no such page"}})
        key = (query.get("metadata[dashvlm_key]") or [""])[0]
        with LOCK:
            found = [self.server.stored[key]] if key in self.server.stored else []
        return self.reply(200, {"object": "list", "data": found, "has_more": False})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] in (None, "Bearer wrong"):
            return self.reply(401, {"error": {"message": f"bad key {self.headers['Authorization']}", "code": "bad"}})
        with LOCK:
            trouble = self.server.plan.pop(0) if self.server.plan else None
        if trouble == 429:
            return self.reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})
        if trouble == "quota":
            return self.reply(429, {"error": {"message": "no money", "code": "insufficient_quota"}})
        if trouble in (400, 500, 503):
            return self.reply(trouble, {"error": {"message": "trouble"}})
        if trouble == "drop":
            self.close_connection = True
            return self.connection.close()
        if trouble == "timeout":
            time.sleep(1.5)
        else:
            time.sleep(self.server.latency * random.uniform(0.5, 1.5))
        answer = self.answer(body, trouble)
        with LOCK:  # from here on it is paid for
            key = (body.get("metadata") or {}).get("dashvlm_key", "")
            if body.get("store"):
                self.server.stored[key] = answer
            line = {"key": key, "mode": "told" if "What followed is known" in json.dumps(body) else "blind"}
            with (self.server.folder / "paid.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        raw = json.dumps(answer).encode()
        if trouble == "late 504":
            return self.reply(504, {"error": {"message": "gateway"}})
        if str(trouble).startswith("body "):
            return self.send(200, trouble[5:].encode())
        if trouble == "half":
            return self.send(200, raw[: len(raw) // 2])
        if trouble == "drip":
            self.start(200, len(raw))
            for byte in raw:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
            return None
        return self.send(200, raw)

    def answer(self, body, trouble):
        """Look at the pictures: the number of bright ones decides nothing, but they must be readable."""
        parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        sizes = [Image.open(io.BytesIO(base64.b64decode(u.split(",", 1)[1]))).size for u in urls]
        text = json.dumps(body["messages"])
        told = "there was a collision" in text or ("there was no collision" not in text and sum(map(ord, text)) % 2)
        yes = bool(told)
        word = "Yes" if yes else "No"
        content = f"<reasoning>\nThe gap to the vehicle ahead was measured. {len(sizes)} views.\n</reasoning>\n"
        content += f"<answer>\n{word}\n</answer>"
        if '"road_type"' not in text and "driving parameters" in text:
            fields = {"road_type": "Urban Street", "lane_count": 3, "ego_lane_position": "middle",
                      "traffic_light_state": "none", "pedestrian_on_road": "no", "closest_vehicle_distance": "50 feet",
                      "ego_vehicle_speed": "25 mph", "road_curvature": "straight", "weather": "clear",
                      "visibility": "good", "traffic_density": "low", "risk_factor": "moderate"}  # fmt: skip
            content = (
                f"**Scene Description:**\nA road.\n\n**Driving Parameters (JSON):**\n```json\n{json.dumps(fields)}\n"
            )
            content += "```\n\n**Risk Assessment:**\nLow."
        if body.get("logprobs"):
            content = word
        message = {"role": "assistant", "content": content, "refusal": None}
        if trouble == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I'm sorry, I can't assist with that."}
        if trouble == "prose":
            message["content"] = "There is no immediate threat."
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs"):
            top = [{"token": word, "logprob": -0.2, "bytes": None}, {"token": "No", "logprob": -1.8, "bytes": None}]
            first = {"token": word, "logprob": -0.2, "bytes": None, "top_logprobs": top}
            choice["logprobs"] = {"content": [first], "refusal": None}
        return {
            "id": f"c{random.random()}", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [] if trouble == "empty" else [choice],
            "usage": {"prompt_tokens": 85 * len(urls) + len(text) // 4000, "completion_tokens": 50, "total_tokens": 0},
        }  # fmt: skip

    def reply(self, status, body, headers=None):
        self.send(status, json.dumps(body).encode(), headers)

    def send(self, status, raw, headers=None):
        self.start(status, len(raw), headers)
        self.wfile.write(raw)

    def start(self, status, length, headers=None):
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    server = Server(where, json.loads(sys.argv[2]) if len(sys.argv) > 2 else [], stores="no-store" not in sys.argv)
    (where / "port.tmp").write_text(str(server.server_port))
    (where / "port.tmp").rename(where / "port")
    server.serve_forever()
