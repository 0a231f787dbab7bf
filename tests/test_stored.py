# ruff: noqa: E501
"""Files of run folders from strangers: one clear error each, at once, and a damaged run hides no other."""

import json
import time

import pytest

from dashvlm.errors import DataError
from dashvlm.stored import read_json, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 10)}]\n" for n in "bcdefghij"
)
WRONG_YAML = {
    "empty": b"", "list": b"- 1\n- 2\n", "text": b"just words", "tab": b"a:\n\t- b", "open": b"a: [1, 2", "bytes": b"\xff\xfe\x00",
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000, "aliases": BOMB.encode(), "itself": b"a: &a [*a]\n", "null": b"~",
    "python": b"!!python/object/apply:os.system ['touch /tmp/never']", "large": b"a: " + b"x" * (1 << 21), "date": b"a: 2026-13-77",
    "indents": b"".join(b" " * i + b"a:\n" for i in range(300)),
}  # fmt: skip
WRONG_JSON = {
    "empty": b"", "list": b"[1]", "open": b'{"a": 1', "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bytes": b"\xff",
    "number": b"1", "text": b'"a"', "trailing": b'{"a": 1} x',
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_YAML)
def test_a_damaged_yaml_is_one_clear_error_at_once(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_bytes(WRONG_YAML[name])
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"config\.yaml cannot be read"):
        read_yaml(path)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", WRONG_JSON)
def test_a_damaged_json_is_one_clear_error_at_once(tmp_path, name):
    path = tmp_path / "result.json"
    path.write_bytes(WRONG_JSON[name])
    with pytest.raises(DataError, match=r"result\.json cannot be read"):
        read_json(path)


def test_what_runs_write_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {grid: [1, 2], name: é}\nsame: &s [1]\nagain: *s\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"data": {"grid": [1, 2], "name": "é"}, "same": [1], "again": [1]}
    (tmp_path / "a.json").write_text('{"metrics": {"accuracy": null}}')
    assert read_json(tmp_path / "a.json") == {"metrics": {"accuracy": None}}
    with pytest.raises(DataError, match="No such file"):
        read_yaml(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("file", "content"),
    [("result.json", b"{"), ("result.json", b'{"metrics": []}'), ("result.json", b"[]"), ("config.yaml", b"a: [1"),
     ("config.yaml", b"[]"), ("config.yaml", BOMB.encode())],
)  # fmt: skip
def test_a_damaged_run_hides_no_other(dashvlm, tmp_path, file, content):
    for name in ("good", "bad"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("task: {name: crash}\ndata: {name: x}\n")
        estimate = {"value": 0.75, "low": 0.5, "high": 1.0}
        result = {"status": "done", "run_id": name, "metrics": {"roc_auc": estimate}, "baselines": {}, "alarms": [],
                  "counts": {"test_clips": 4, "groups": 4}, "evaluation": "binary", "split": "test"}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    (tmp_path / "runs" / "bad" / file).write_bytes(content)
    done = dashvlm("report", "html=false")
    assert "0.750" in done.stdout
    assert "damaged" in done.stdout
    assert "Traceback" not in done.stderr
