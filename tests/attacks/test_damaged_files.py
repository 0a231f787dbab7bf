# ruff: noqa: E501
"""Files of run folders from strangers: one clear error each, at once, and a damaged run hides no other."""

import json
import os
import shutil
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dashvlm.errors import DataError
from dashvlm.safety import checksums
from dashvlm.safety.files import is_name, read_json, read_lines, read_table, read_yaml
from tests.conftest import Trials

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 10)}]\n" for n in "bcdefghij"
)
WRONG_YAML = {
    "empty": b"", "list": b"- 1\n- 2\n", "text": b"just words", "tab": b"a:\n\t- b", "open": b"a: [1, 2", "bytes": b"\xff\xfe\x00",
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000, "aliases": BOMB.encode(), "itself": b"a: &a [*a]\n", "null": b"~",
    "python": b"!!python/object/apply:os.system ['touch /tmp/never']", "large": b"a: " + b"x" * (1 << 21), "date": b"a: 2026-13-77",
    "indents": b"".join(b" " * i + b"a:\n" for i in range(300)), "module": b"!!python/module:os", "name": b"a: !!python/name:os.system",
    "new": b"!!python/object/new:os.system [true]", "anchor": b"a: *nowhere", "quote": b"a: 'open", "twice": b"--- {a: 1}\n--- {b: 2}\n",
    "directive": b"%YAML 9.9\n---\n{", "map": b"? [a]\n: {{a: b}: c}\n", "int": b"12", "nul": b"a: \x00", "escape": b'a: "\\xZZ"',
    "merges": b"a0: &a0 {x: 1}\n" + b"".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n".encode() for n in range(1, 12)),
    "flow": b"{" * 2000, "binary": b"!!binary |\n  ====", "set": b"!!set {a, b", "zeros": b"\x00" * 4096, "random": bytes(range(256)) * 8,
}  # fmt: skip
WRONG_JSON = {
    "empty": b"", "list": b"[1]", "open": b'{"a": 1', "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bytes": b"\xff",
    "number": b"1", "text": b'"a"', "trailing": b'{"a": 1} x', "null": b"null", "true": b"true", "single": b"{'a': 1}", "comma": b'{"a": 1,}',
    "comment": b'{"a": 1 // x\n}', "two": b'{"a": 1}{"b": 2}', "zeros": b"\x00" * 4096, "random": bytes(range(256)) * 8, "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "wide": b'{"a": [' + b"1," * 600_000 + b"1]}", "escape": b'{"a": "\\x"}', "utf16": '{"a": 1}'.encode("utf-16"), "html": b"<html></html>",
    "deepobject": b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "colon": b'{"a" 1}', "key": b"{a: 1}", "control": b'{"a": "\n"}', "only": b"{", "close": b"}",
    "level61": b'{"a":' * 61 + b"1" + b"}" * 61, "large": b'{"a": "' + b"x" * (65 << 20) + b'"}', "git": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip


def refused(read, path, least_words="cannot be read"):
    """Whether reading ends in one clear error within five seconds."""
    started = time.perf_counter()
    try:
        read(path)
    except DataError as error:
        return least_words in error.what and bool(error.got) and bool(error.do) and time.perf_counter() - started < 5
    return False


def test_damaged_yaml_is_one_clear_error_at_once(tmp_path):
    with Trials("damaged YAML") as trials:
        for name, content in WRONG_YAML.items():
            path = tmp_path / "config.yaml"
            path.write_bytes(content)
            trials.check(refused(read_yaml, path), name)
    assert trials.tried >= 30


def test_damaged_json_is_one_clear_error_at_once(tmp_path):
    with Trials("damaged JSON") as trials:
        for name, content in WRONG_JSON.items():
            path = tmp_path / "result.json"
            path.write_bytes(content)
            trials.check(refused(read_json, path), name)
    assert trials.tried >= 30


def test_damaged_parquet_is_one_clear_error_at_once(tmp_path, finished_run):
    whole = (finished_run / "predictions.parquet").read_bytes()
    wrong = {"empty": b"", "text": b"a,b\n1,2\n", "magic": b"PAR1PAR1", "zeros": b"\x00" * 4096, "html": b"<html>"}
    wrong |= {f"cut at {n} %": whole[: len(whole) * n // 100] for n in (1, 10, 25, 50, 75, 90, 99)}
    wrong |= {f"without {n} bytes at the start": whole[n:] for n in (1, 4, 100)}
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # where the footer begins
    for n in range(15):  # a hole over pages, or in the footer
        place = 4 + n * (end - 4) // 15
        wrong[f"hole at {place}"] = whole[:place] + b"\xff" * 64 + whole[place + 64 :]
    wrong["footer"] = whole[:end] + b"\x00" * 40 + whole[end + 40 :]
    wrong["length"] = whole[:-8] + (1 << 30).to_bytes(4, "little") + whole[-4:]
    bomb = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": pa.array(["x" * 1000] * 100_000).dictionary_encode()}), bomb)
    with Trials("damaged Parquet") as trials:
        for name, content in wrong.items():
            path = tmp_path / "predictions.parquet"
            path.write_bytes(content)
            started = time.perf_counter()
            try:  # checksums find a hole that leaves a readable table
                read_table(path, ("primary", "target", "score", "sample_id"))
                clear = name.startswith("hole")
            except DataError as error:
                clear = "cannot be read" in error.what
            trials.check(clear and time.perf_counter() - started < 5, name)
    assert trials.tried >= 30
    with pytest.raises(DataError, match="no column score"):
        read_table(bomb, ("score",))


def test_a_table_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "bomb.parquet"
    many = pa.table({f"c{n}": pa.array([0], pa.int8()) for n in range(3)})
    pq.write_table(many, path)
    from dashvlm.safety import files as stored

    before, stored.MAX_CELLS = stored.MAX_CELLS, 2
    try:
        with pytest.raises(DataError, match="more than such a table has"):
            read_table(path)
    finally:
        stored.MAX_CELLS = before


@pytest.mark.parametrize("read", [read_yaml, read_json, read_lines, read_table])
def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "circle", "folder", "nothing"):
        assert refused(read, tmp_path / name), name


def test_what_runs_write_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {grid: [1, 2], name: é}\nsame: &s [1]\nagain: *s\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"data": {"grid": [1, 2], "name": "é"}, "same": [1], "again": [1]}
    (tmp_path / "a.json").write_text('{"metrics": {"accuracy": null}}')
    assert read_json(tmp_path / "a.json") == {"metrics": {"accuracy": None}}
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n{"a": 3}\n{"a": ')
    assert read_lines(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 3}]
    pd.DataFrame({"a": [1, None]}).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", ["a"])["a"].tolist()[0] == 1
    assert [is_name(n) for n in ("crash-a-1", "../x", "a/b", "", ".", "a b", 3)] == [True] + [False] * 6


@pytest.mark.parametrize(
    ("file", "content"),
    [("result.json", b"{"), ("result.json", b'{"metrics": []}'), ("result.json", b"[]"), ("config.yaml", b"a: [1"),
     ("config.yaml", b"[]"), ("config.yaml", BOMB.encode()), ("checksums.json", b"{"), ("checksums.json", b"{}"),
     ("result.json", b'{"status": "done", "metrics": {"roc_auc": 3}}'), ("result.json", b'{"status": "done", "metrics": {}, "seconds": {"all": "x"}, "device": "gpu"}'),
     ("result.json", b'{"status": "done", "metrics": {}, "parameters": [3]}')],
)  # fmt: skip
def test_a_damaged_run_hides_no_other(dashvlm, tmp_path, file, content):
    for name in ("good", "bad"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("task: {name: crash}\nseed: 1\n")
        result = {"status": "done", "evaluation": "binary", "counts": {}, "baselines": {}, "alarms": [],
                  "metrics": {"roc_auc": {"value": 0.75, "low": 0.5, "high": 1.0}}}  # fmt: skip
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(result))
    (tmp_path / "runs" / "bad" / file).write_bytes(content)
    done = dashvlm("report", "html=true", check=False)
    assert done.returncode == 0, done.stderr
    assert "0.750" in done.stdout
    table = pd.read_csv(tmp_path / "runs" / "report.csv").set_index("run_id")
    bad = table.loc["bad"]
    assert bad["status"] == "damaged" or "cannot be read" in str(bad["alarms"])
    assert table.loc["good", "status"] == "done"


@pytest.fixture
def copied(finished_run, tmp_path):
    run = tmp_path / "runs" / finished_run.name
    shutil.copytree(finished_run, run)
    return run


@pytest.mark.parametrize("file", ["result.json", "predictions.parquet", "config.yaml"])
def test_what_was_changed_by_hand_is_said(dashvlm, copied, file):
    path = copied / file
    if file == "predictions.parquet":
        rows = pd.read_parquet(path)
        rows["score"] = rows["target"].astype(float)
        rows.to_parquet(path)
    else:
        path.write_text(path.read_text().replace('"value": 0', '"value": 1').replace("seed: 0", "seed: 1") + "\n")
    done = dashvlm("report", "html=true")
    assert f"changed after the run: {file}" in " ".join(done.stdout.split())


def test_a_run_as_it_was_written_is_not_said_to_be_changed(dashvlm, copied):
    assert checksums.changed(copied) == []
    assert "changed after the run" not in dashvlm("report", "html=true").stdout


def test_a_configuration_that_lost_its_end_is_one_clear_error(dashvlm, copied):
    lines = (copied / "config.yaml").read_text().splitlines()
    with Trials("damaged configurations, whole verbs") as trials:
        for share in (0.2, 0.5, 0.8):
            cut = yaml.safe_load("\n".join(lines[: int(len(lines) * share)]))
            (copied / "config.yaml").write_text(yaml.safe_dump(cut))
            for verb, words in (("evaluate", ()), ("export", ())):
                done = dashvlm(verb, f"run={copied}", *words, check=False)
                clear = done.returncode == 2 and "Traceback" not in done.stderr and str(copied) in done.stderr
                trials.check(clear, (share, verb, done.stderr[-300:]))


def test_a_report_opens_no_picture_outside_the_data(dashvlm, copied, tmp_path):
    """The path in a foreign table may name anything; the configuration beside it may name a root as wide as /."""
    from PIL import Image

    from dashvlm.engine.gallery import _allowed, gallery

    secret = tmp_path / "private.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    cache = tmp_path / "cache"
    rows = pd.read_parquet(copied / "predictions.parquet")
    assert any(sample["strip"] for sample in gallery(copied, cache))
    rows["path"] = str(secret)
    rows.to_parquet(copied / "predictions.parquet")
    assert not any(sample["strip"] for sample in gallery(copied, cache))
    for root in ("/", str(tmp_path.parent), "/etc", "/root", "~"):
        held = _allowed("/etc/passwd", copied, root, cache) is None
        assert held or root == str(tmp_path.parent), root
    link = tmp_path / "data"
    link.mkdir()
    (link / "a.png").symlink_to(secret)
    assert _allowed(str(link / "a.png"), copied, str(link), cache) is None
    (link / "b.png").write_bytes(secret.read_bytes())
    assert _allowed(str(link / "b.png"), copied, str(link), cache) == str(link / "b.png")


def test_all_files_of_a_clip_must_lie_in_the_data(tmp_path):
    from dashvlm.data.pictures import SEPARATOR, lies_in

    root = tmp_path / "data"
    (root / "walk").mkdir(parents=True)
    (root / "walk" / "1.png").write_bytes(b"x")
    assert lies_in(root, root / "walk")
    assert not lies_in(root, root / f"walk{SEPARATOR}/etc/passwd")
    (root / "walk" / "2.png").symlink_to("/etc/passwd")
    assert not lies_in(root, root / "walk")


# -- links, pipes and odd values in a run folder of somebody else ---------------------------------


def test_export_and_report_follow_no_link_out_of_a_foreign_run(dashvlm, copied, tmp_path):
    victim = tmp_path / "victim"
    (victim / "merged").mkdir(parents=True)
    (victim / "merged" / "thesis.tex").write_text("mine")
    (victim / "README.md").write_text("mine")
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE" * 10)
    (copied / "export").symlink_to(victim)
    (copied / "plots" / "curves.png").unlink(missing_ok=True)
    (copied / "plots" / "curves.png").symlink_to(secret)
    for name in ("report.csv", "report.md", "report.tex", "report.html", "report-crash.png"):
        (copied.parent / name).symlink_to(victim / "README.md")
    dashvlm("report", "html=true")
    dashvlm("export", f"run={copied}")
    assert (victim / "README.md").read_text() == "mine"
    assert (victim / "merged" / "thesis.tex").read_text() == "mine"
    page = (copied.parent / "report.html").read_text()
    assert "UFJJVkFURV" not in page  # in base 64
    assert "PRIVATE" not in page


@pytest.mark.parametrize("name", ["trained.safetensors", "start.safetensors"])
def test_a_pipe_as_weights_is_not_waited_for(dashvlm, copied, name):
    (copied / "checksums.json").unlink()
    (copied / name).unlink(missing_ok=True)
    os.mkfifo(copied / name)
    done = dashvlm("export", f"run={copied}", check=False)
    assert done.returncode == (2 if name == "trained.safetensors" else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "change", [("data", "num_frames", 10**9), ("data", "frame_size", [40000, 40000]), ("seed", None, -1)]
)
def test_the_rules_hold_for_a_foreign_run_too(dashvlm, copied, change):
    group, key, value = change
    config = yaml.safe_load((copied / "config.yaml").read_text())
    if key:
        config[group][key] = value
    else:
        config[group] = value
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    for verb in ("export", "evaluate"):
        done = dashvlm(verb, f"run={copied}", check=False)
        assert done.returncode == 2
        assert "must be" in done.stderr
    assert "no samples of" in (dashvlm("report", "html=true").stdout + (copied.parent / "report.html").read_text())


def test_a_foreign_run_neither_renders_into_its_root_nor_empties_the_store(dashvlm, cache, copied, tmp_path):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["data"]["root"], config["data"]["store_gb"] = str(tmp_path / "home"), 1e-9
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    before = len(list(cache.rglob("*.frames")))
    dashvlm("evaluate", f"run={copied}", check=False)
    assert not (tmp_path / "home").exists()
    assert len(list(cache.rglob("*.frames"))) >= before


ODD = {
    "a text as a value": {"metrics": {"roc_auc": {"value": "x", "low": 0, "high": 1}}},
    "a huge value": {"metrics": {"roc_auc": {"value": 10**400, "low": 0, "high": 1}}},
    "a text as a bound": {"metrics": {"roc_auc": {"value": 1, "low": "x", "high": 1}}},
    "a setting as a metric": {"metrics": {"task.name": {"value": 1, "low": 0, "high": 1}}},
    "memory": {"peak_memory_gb": "much"}, "latency": {"latency_s": {}}, "seconds": {"seconds": {"all": [1]}},
    "parameters": {"parameters": [{"trainable": "many"}]}, "evaluation": {"evaluation": "nonsense"},
    "a list as evaluation": {"evaluation": ["x"]}, "devices": {"devices": 10**30, "seconds": {"all": 1.0}, "device": "gpu"},
}  # fmt: skip


def test_an_odd_value_in_one_run_hides_no_other(dashvlm, copied, tmp_path):
    with Trials("odd values in result.json") as trials:
        for name, change in ODD.items():
            bad = copied.parent / "crash-bad"
            shutil.copytree(copied, bad)
            known = json.loads((bad / "result.json").read_text())
            (bad / "result.json").write_text(json.dumps(known | change))
            done = dashvlm("report", "html=true", check=False)
            table = pd.read_csv(copied.parent / "report.csv").set_index("run_id") if done.returncode == 0 else None
            held = table is not None and table.loc["crash-bad", "status"] == "damaged"
            trials.check(held and table.loc[copied.name, "status"] == "done", (name, done.stderr[-300:]))
            shutil.rmtree(bad)


@pytest.mark.parametrize(
    "change", [{"objective": {"name": {"a": 1}}}, {"task": {"name": 3}}, {"task": "crash"}, {"seed": "9" * 200_000}]
)
def test_an_odd_configuration_of_one_run_hides_no_other(dashvlm, copied, change):
    bad = copied.parent / "crash-bad"
    shutil.copytree(copied, bad)
    config = yaml.safe_load((bad / "config.yaml").read_text())
    (bad / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    dashvlm("report", "html=true")
    table = pd.read_csv(copied.parent / "report.csv").set_index("run_id")
    assert table.loc["crash-bad", "status"] == "damaged"
    assert table.loc[copied.name, "status"] == "done"


def test_a_truncated_result_is_made_again(dashvlm, finished_run, tmp_path):
    from .test_names import SMALL

    words = [*SMALL, "trainer.max_steps=2", "objective.generate=false"]
    dashvlm("train", *words)
    (path,) = (tmp_path / "runs").glob("crash-*/result.json")
    path.write_text("{")
    again = dashvlm("train", *words)
    assert "is damaged, running again" in again.stdout
    assert json.loads(path.read_text())["status"] == "done"


def test_a_run_of_a_study_that_is_not_here_is_used_all_the_same(dashvlm, copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, "study": "somebodys/full"}))
    dashvlm("export", f"run={copied}")
    assert "no samples of" not in dashvlm("report", "html=true").stdout
