"""A W&B server as far as reading runs goes: real HTTP, GraphQL answers in the shape of the real ones, files."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

VIEWER = {"id": "1", "username": "me", "entity": "ent", "email": "", "flags": "{}", "teams": {"edges": []}}


@contextlib.contextmanager
def serving(runs, entity="ent", project="proj"):
    """Serve finished runs until the block ends.

    Args:
        runs: run id -> ``(tags, folder of its files)``.

    Yields:
        The address, and the list of what was asked (names of queries, paths of files).
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, body, kind="application/json"):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            _, _, run, name = unquote(self.path).split("/", 3)
            asked.append(name)
            self.answer((runs[run][1] / name).read_bytes(), "application/octet-stream")

        def do_POST(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/graphql":
                self.answer(b"{}")
                return
            said = json.loads(raw)
            query, variables = said["query"], said.get("variables") or {}
            name = re.search(r"query (\w+)", query)[1]
            asked.append(name)
            found = {"viewer": VIEWER}
            if "project(" in query:
                known = (variables.get("entity"), variables.get("project")) == (entity, project)
                found = {"project": self.project(query, variables) if known else None}
            self.answer(json.dumps({"data": found}).encode())

        def project(self, query, variables):
            if "run(" in query:
                return {"internalId": "1", "run": self.run_node(variables.get("run") or variables["name"], variables)}
            wanted = json.loads(variables.get("filters") or "{}").get("tags", {}).get("$in")
            shown = [r for r, (tags, _) in runs.items() if wanted is None or set(wanted) & set(tags)]
            edges = [{"node": self.run_node(r, variables), "cursor": r} for r in shown]
            page = {"endCursor": shown[-1] if shown else "", "hasNextPage": False}
            return {"internalId": "1", "runCount": len(shown), "readOnly": False,
                    "runs": {"edges": edges, "pageInfo": page}}  # fmt: skip

        def run_node(self, run, variables):
            tags, folder = runs[run]
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            names = [n for n in names if n in (variables.get("fileNames") or names)]
            edges = [{"node": self.file_node(run, folder, n), "cursor": n} for n in names]
            return {
                "id": run, "projectId": 1, "name": run, "displayName": run, "tags": tags, "sweepName": None,
                "state": "finished", "group": "g", "jobType": "train", "commit": None, "readOnly": False,
                "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": "",
                "notes": "",
                "historyLineCount": 0, "user": {"name": "me", "username": "me"}, "config": "{}", "summaryMetrics": "{}",
                "systemMetrics": "{}", "historyKeys": {}, "fileCount": len(names),
                "files": {"edges": edges, "pageInfo": {"endCursor": names[-1] if names else "", "hasNextPage": False}},
            }  # fmt: skip

        def file_node(self, run, folder, name):
            url = f"http://127.0.0.1:{server.server_port}/files/{run}/{name}"
            return {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": (folder / name).stat().st_size,
                    "mimetype": "", "updatedAt": "2026-01-01T00:00:00", "md5": ""}  # fmt: skip

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
