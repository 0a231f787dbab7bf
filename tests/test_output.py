"""What people look at: the HTML report in a real browser, W&B, notebooks, documented commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from dashvlm.report.studies import load_study, study_names

from .conftest import REAL, ROOT, SMALL, in_this_process

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
        run = page.locator(".by-run option").nth(1).inner_text()
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
    sample = dict.fromkeys(("run", "clip", "kind", "target", "answer", "score", "text", "prompt"), bad)
    section = {"task": bad, "rows": [[{"text": bad, "key": bad}]], "header": [bad], "pictures": [],
               "samples": [{**sample, "strip": "", "times": []}], "runs": [bad], "notes": [bad]}  # fmt: skip
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
    dashvlm("train", *SMALL, "trainer.max_steps=2", "logger=wandb", "logger.mode=offline", "study=nexar_frames/smoke")
    (path,) = (tmp_path / "runs").glob("crash-*/wandb/offline-run-*/run-*.wandb")
    from wandb.proto import wandb_internal_pb2

    summary, run, artifacts = {}, None, {}
    for data in offline_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("artifact"):
            artifacts[record.artifact.name.rsplit("-", 1)[-1]] = record.artifact.manifest.contents
        if record.HasField("summary"):
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
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


@pytest.mark.parametrize("name", study_names())
def test_a_workspace_is_made_by_code_and_names_the_studys_metrics(name):
    pytest.importorskip("wandb_workspaces")
    from dashvlm.report.workspace import workspace

    study = load_study(name)
    made = json.loads(workspace(study, "somebody", "dashvlm")._to_model().model_dump_json(by_alias=True))
    text = json.dumps(made)
    assert made["displayName"] == study.spec["title"]
    assert all(f"test/{metric}" in text for metric in study.metrics)
    sections = [s["name"] for s in made["spec"]["section"]["panelBankConfig"]["sections"]]
    assert sections[:2] == ["Results on the test split", "What it must beat"]
    assert f"study:{name}/full" in text


def test_a_workspace_needs_an_entity(dashvlm):
    done = dashvlm("report", "study=nexar_frames", "workspace=project", check=False)
    assert done.returncode == 2
    assert "entity" in done.stderr


# -- notebooks and documented commands ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "notebooks").glob("*.py")))
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").glob("*/*.md"))]


def commands():
    """Every command line in a fenced block of the documentation."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.split("  #")[0].split(" # ")[0].strip()
                if words and not words.startswith("#"):
                    yield pytest.param(words, id=f"{page.relative_to(ROOT)}: {words[:60]}")


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_is_one(line, config):
    """Commands need data, a GPU or minutes; that they are spelled right needs none of these."""
    from dashvlm.cli import composing, overrides_of
    from dashvlm.config import check, check_overrides, plain

    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(w in targets for w in words[1:] if "=" not in w), line
        return
    if words[:2] != ["python", "-m"] or not words[2].startswith("dashvlm."):
        assert words[0] in ("pip", "export", "git", "cd", "apt-get", "nvidia-smi", "jupytext"), line
        return
    verb, said = words[2].removeprefix("dashvlm."), overrides_of([w for w in words[3:] if w != "-m"])
    with composing():
        check_overrides(verb, said)
        if verb != "train":
            return
        from hydra import compose
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parsed = OverridesParser.create().parse_overrides(said)
        fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        first = [f"{o.key_or_group}={next(iter(o.sweep_string_iterator()))}" for o in parsed if o.is_sweep_override()]
        assert check(plain(compose("train", overrides=[*fixed, *first]))) == [], line
