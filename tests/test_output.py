"""What people look at: the HTML report in a real browser, W&B, notebooks, documented commands."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from dashvlm.config.find import study_names
from dashvlm.config.identity import RUN_FILES, run_id
from dashvlm.errors import DataError
from dashvlm.report.wandb_runs import fetch_runs
from dashvlm.reproductions.studies import load_study
from dashvlm.reproductions.study_runs import run_results

from .conftest import REAL, ROOT, SMALL, in_this_process
from .wandb_server import serving

CHROMIUM = next((shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome") if shutil.which(n)), None)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, cache):
    """A small sweep with a report, once for the module."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    call = in_this_process(cache, folder)
    call("train", *SMALL, "-m", "data.num_frames=1,2", "trainer.max_steps=2", "trainer.log_every_n_steps=1")
    call("report")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_the_report_opens_sorts_filters_and_shows_filmstrips(sweep):
    playwright = pytest.importorskip("playwright.sync_api")
    errors = []
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: errors.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto((sweep / "report.html").as_uri())
        heads = page.locator("table.runs th").all_inner_texts()
        column = heads.index("num_frames")

        def values():
            return page.locator(f"table.runs tbody tr td:nth-child({column + 1})").all_inner_texts()

        page.locator("table.runs th").nth(column).click()
        assert values() == ["1", "2"]
        page.locator("table.runs th").nth(column).click()
        assert values() == ["2", "1"]
        shown = page.locator(".sample:visible")
        every = shown.count()
        assert every == 2 * 4
        assert "num_frames 1" in page.locator(".by-run option").nth(1).inner_text()
        run = page.locator(".by-run option").nth(1).get_attribute("value")
        page.select_option(".by-run", run)
        assert shown.count() == every // 2
        kind = page.locator(".sample:visible").first.get_attribute("data-kind")
        page.select_option(".by-kind", kind)
        assert 0 < shown.count() <= every // 2
        page.fill(".by-text", "no such clip")
        assert shown.count() == 0
        page.fill(".by-text", "")
        image = shown.first.locator("img")
        assert image.evaluate("i => i.complete && i.naturalWidth > 40 && i.naturalHeight > 40")
        shown.first.locator("summary").click()
        assert "Is a vehicle collision likely" in shown.first.locator("pre").first.inner_text()
        page.locator("summary", has_text="curves of training").click()
        for picture in page.locator(".pictures img").all():
            assert picture.evaluate("i => i.naturalWidth") > 200
        browser.close()
    assert errors == []


def test_the_report_escapes_what_models_write():
    import jinja2

    source = (ROOT / "dashvlm" / "report" / "templates" / "report.html.j2").read_text()
    bad = "<script>alert(1)</script>"
    sample = dict.fromkeys(("run", "label", "clip", "kind", "target", "answer", "score", "text", "prompt"), bad)
    section = {"task": bad, "rows": [[{"text": bad, "key": bad}]], "header": [bad], "pictures": [],
               "samples": [{**sample, "strip": "", "times": []}], "runs": [(bad, bad)], "notes": [bad]}  # fmt: skip
    page = jinja2.Environment(autoescape=True).from_string(source).render(sections=[section], folder=bad)
    assert bad not in page
    assert "&lt;script&gt;" in page


# -- dashboards ---------------------------------------------------------------------------------


def offline_records(path):
    """Records of an offline run file: a LevelDB log (blocks of 32 KiB; checksum, length, kind) behind 7 bytes."""
    raw, place, parts = path.read_bytes(), 7, []
    assert raw[:4] == b":W&B"
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        if not kind:
            break
        parts.append(raw[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_offline_wandb_files_hold_group_tables_and_filmstrips(dashvlm, tmp_path):
    words = [*SMALL, "trainer.max_steps=2", "study=nexar_frames/smoke"]
    dashvlm("train", *words, "logger=wandb", "logger.mode=offline")
    (path,) = (tmp_path / "runs").glob("crash-*/wandb/offline-run-*/run-*.wandb")
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # W&B's service writes the end of the file after finish() has returned
    sent = yaml.safe_load((path.parent / "files" / "dashvlm" / "config.yaml").read_text())
    assert run_id(sent) == path.parent.parent.parent.name
    summary, run, artifacts, saved = {}, None, {}, set()
    for data in offline_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("files"):
            saved |= {f.path for f in record.files.files}
        if record.HasField("artifact"):
            artifacts[record.artifact.name.rsplit("-", 1)[-1]] = record.artifact.manifest.contents
        if record.HasField("summary"):
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    kept = set(RUN_FILES) - {"stream.parquet"}  # of whole clips, which were not asked for
    assert {f"dashvlm/{name}" for name in kept} <= saved  # what `wandb sync` sends
    assert run.run_group == "nexar_frames"
    assert "study:nexar_frames/smoke" in run.tags
    assert "test/roc_auc" in summary
    folder = path.parent / "files" / "media" / "table"
    tables = {p.name.split("_")[0]: json.loads(p.read_text()) for p in folder.rglob("*.table.json")}
    assert {"predictions", "samples"} <= set(tables)
    assert tables["samples"]["columns"][0] == "frames"
    pictures = [entry for entry in artifacts["samples"] if entry.path.startswith("media/images/")]
    assert len(pictures) == len([row for row in tables["samples"]["data"] if row[0]]) > 0
    assert all(entry.size > 500 for entry in pictures)


@pytest.mark.long
def test_a_study_is_built_from_the_runs_of_a_wandb_project(dashvlm, tmp_path, cache):
    study = load_study("nexar_frames")
    dashvlm("train", *study.words("smoke"), "logger=wandb", "logger.mode=offline")
    folders = {p.parent.name: p.parent for p in (tmp_path / "runs").glob("*/result.json")}
    assert len(folders) == 2
    sent = {run: next(folder.glob("wandb/offline-run-*/files")) for run, folder in folders.items()}
    runs = {run: (["study:nexar_frames/smoke"], files) for run, files in sent.items()}
    runs["crash-other"] = (["study:other/full"], tmp_path / "none")
    here = run_results(study, tmp_path / "runs")
    assert len(here) > 10
    fetch = in_this_process(cache, tmp_path / "fetched")
    with serving(runs) as (address, asked):
        known = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}
        done = fetch("report", "study=nexar_frames", "wandb=ent/proj", env=known)
        assert "2 finished runs of ent/proj" in done.stdout
        assert run_results(study, tmp_path / "fetched") == here
        files = [name for name in asked if name.startswith("dashvlm/")]
        everything = fetch("report", "wandb=ent/proj", env=known)  # what is there is not fetched again
        assert "1 without the files that tables are made from: crash-other" in everything.stdout
        assert [name for name in asked if name.startswith("dashvlm/")] == files
        assert "k" * 40 not in "".join(p.read_text() for p in (tmp_path / "fetched").rglob("*.yaml"))
        wrong = fetch("report", "wandb=ent/nowhere", env=known, check=False)
        assert wrong.returncode == 2
        assert "nowhere" in wrong.stderr
        changed = next(iter(sent.values())) / "dashvlm" / "result.json"
        numbers = json.loads(changed.read_text())
        numbers["metrics"]["roc_auc"]["value"] += 0.001
        changed.write_text(json.dumps(numbers))
        words = ["study=nexar_frames", "wandb=ent/proj", "check=true"]
        found = in_this_process(cache, tmp_path / "again")("report", *words, env=known, check=False)
        assert "does not follow from its predictions" in found.stderr


@pytest.mark.parametrize(
    ("run", "config", "said"),
    [
        ("../evil", "task: {name: crash}", "cannot be a folder's name"),
        ("crash-1", "task: {name: /../../evil}", "is no configuration"),
        ("crash-1", "", "is no configuration"),
        ("crash-1", "task: {name: crash}\nsweep: {overrides: 5}", "is no configuration"),
    ],
)
def test_what_comes_from_a_server_stays_in_its_folder(tmp_path, monkeypatch, run, config, said):
    files = tmp_path / "files" / "dashvlm"
    files.mkdir(parents=True)
    for name, text in (("config.yaml", config), ("result.json", "{}"), ("predictions.parquet", "")):
        (files / name).write_text(text)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with serving({run: ([], tmp_path / "files")}) as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with pytest.raises(DataError, match=said):
            fetch_runs("ent/proj", tmp_path / "runs")
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(files.iterdir())


def test_a_picture_has_the_times_of_its_frames(tmp_path):
    from dashvlm.engine.gallery import _sample
    from dashvlm.tasks.binary import SCORES

    class Store:
        def frames(self, path, times):
            return np.zeros((len(times), 8, 8, 3), np.uint8), times

    row = {
        "path": "x.mp4",
        "frame_times_s": [i / 2 for i in range(20)],
        "clip_id": "x",
        "target": 1,
        "score": 0.4,
        "_right": 0.0,
    }
    times = _sample("run", row, SCORES, Store(), True)["times"]
    assert times[:2] == ["0.00 s", "1.50 s"]
    assert times[7:] == ["9.50 s", "8 of 20 frames", "pixels off: the model saw grey instead"]


@pytest.mark.parametrize("name", study_names())
def test_a_workspace_is_made_by_code_and_names_the_studys_metrics(name):
    pytest.importorskip("wandb_workspaces")
    from dashvlm.reproductions.workspace import workspace

    study = load_study(name)
    made = json.loads(workspace(study, "somebody", "dashvlm")._to_model().model_dump_json(by_alias=True))
    text = json.dumps(made)
    assert made["displayName"] == study.spec["title"]
    assert all(f"test/{metric}" in text for metric in study.metrics)
    sections = [s["name"] for s in made["spec"]["section"]["panelBankConfig"]["sections"]]
    assert sections[:2] == ["Results on the test split", "What it must beat"]
    assert f"study:{study.owner}/full" in text


def test_a_workspace_needs_an_entity(dashvlm):
    done = dashvlm("report", "study=nexar_frames", "workspace=project", check=False)
    assert done.returncode == 2
    assert "entity" in done.stderr


# -- notebooks and documented commands ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(p.name, marks=[pytest.mark.long] * (not p.name.startswith("01")))
     for p in sorted((ROOT / "notebooks").glob("*.py"))],
)  # fmt: skip
def test_every_notebook_runs(tmp_path, cache, name):
    jupytext = pytest.importorskip("jupytext")
    source = ROOT / "notebooks" / name
    notebook = jupytext.read(source)
    assert sum(cell.cell_type == "markdown" for cell in notebook.cells) >= 2
    published = REAL / "nexar" / "llama32_val_results.csv"
    environment = {**os.environ, "DASHVLM_CACHE": str(cache), "MPLBACKEND": "Agg", "PREDICTIONS": str(published)}
    done = subprocess.run([sys.executable, str(source)], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_pages_of_the_config_groups_are_not_stale():
    from .config_pages import pages

    for name, text in pages().items():
        assert (ROOT / "docs" / "config" / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"
