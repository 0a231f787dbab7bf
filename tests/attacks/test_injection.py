"""What strangers wrote stays text: formulas, terminal escapes, Markdown, LaTeX and HTML, through a whole run."""

import csv
import html.parser
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dashvlm.safety.plaintext import cell, cells, latex, markdown, visible
from tests.conftest import Trials

FORMULAS = [
    '=HYPERLINK("http://evil","x")', "=cmd|' /C calc'!A0", "+cmd|x", "-cmd|x", "@SUM(1)", "\t=1+1", "\r=1+1", " =1+1",
    "\ufeff=1+1", "\uff1d1+1", "\u200b=1", "-2+3+cmd|x", "=1",
]  # fmt: skip
ESCAPES = [
    "\x1b[2Jgone", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x9b31mred", "over\rwritten",
    "\x08\x08back", "\u202eright to left", "\u2066isolated", "\x00nul", "\x7fdel", "\u2028line",
]  # fmt: skip
MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg/onload=alert(1)>',
    "</title><script>x</script>",
    "![x](http://evil/x.png)", "[click](javascript:alert(1))", "[a]: http://evil", "a | b | c", "<!-- x -->",
    "{{ 7 * 7 }}", "{% raw %}", "\\input{/etc/passwd}", "\\write18{id}", "$x_$", "a & b % c # d ~ ^ _ { }",
]  # fmt: skip
EVIL = [*FORMULAS, *ESCAPES, *MARKUP]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def is_formula(text):
    try:
        float(text)
    except ValueError:
        return bool(re.match(r"^[\s\x00-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]", text))
    return False


class Live(html.parser.HTMLParser):
    """Collects what would run or load: tags and attributes that no page of ours has."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = {name: value or "" for name, value in attrs}
        loads = names.get("src", "data:image/").startswith("data:image/") and "javascript" not in names.get("href", "")
        if tag in ("svg", "iframe", "object") or any(n.startswith("on") and n != "onclick" for n in names) or not loads:
            self.found.append((tag, attrs))

    def handle_comment(self, data):
        self.found.append(("comment", data))


def live_html(text):
    page = Live()
    page.feed(text)
    return page.found


def live_markdown(text):
    """Pictures, links and HTML that a Markdown table would make of a text."""
    return re.findall(r"(?<!\\)\]\(|(?<!\\)\]:|(?<!\\)<[A-Za-z/!]", text)


def test_each_writer_neutralises_each_string():
    with Trials("injection: writers") as trials:
        for evil in EVIL:
            trials.check(not is_formula(str(cell(evil))), ("cell", evil))
            trials.check(not CONTROL.search(visible(evil)), ("visible", evil))
            trials.check(not live_markdown(markdown(evil)) and "\n" not in markdown(evil), ("markdown", evil))
            said = re.sub(r"^\{([\[*])\}", r"\1", latex(evil))
            known = (
                r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\textperiodcentered\{\}|\\[&%$#_{}]"
            )
            trials.check(not re.search(r"[\\&%$#_{}~^]", re.sub(known, "", said)), ("latex", evil))


def test_numbers_and_ordinary_texts_are_left_as_they_are():
    for plain in ("-0.5", "+3", "1e-6", "a car - red", "Trời sáng, đúng hay sai?", "e-mail@x", ""):
        assert cell(plain) == plain
        assert visible(plain) == plain
    assert markdown("0.85 [0.80, 0.90]; < 1e-6; num_frames") == "0.85 [0.80, 0.90]; < 1e-6; num_frames"
    table = pd.DataFrame({"n": [1.5, -2.0], "=t": ["=1", None]})
    safe = cells(table)
    assert safe["n"].tolist() == [1.5, -2.0]
    assert list(safe) == ["n", "'=t"]
    assert safe["'=t"].tolist()[0] == "'=1"
    assert table["=t"].tolist()[0] == "=1"


@pytest.fixture(scope="module")
def dataset(finished_run, tmp_path_factory):
    """Real clips whose names, questions, choices and groups are hostile, as somebody's dataset may have them."""
    root = tmp_path_factory.mktemp("evil")
    videos = sorted(Path(p) for p in pd.read_parquet(finished_run / "predictions.parquet")["path"].unique())
    rows = []
    for number, evil in enumerate(EVIL):
        name = f"v{number}.mp4"
        shutil.copy(
            videos[number % len(videos)].parent.parent / "videos" / videos[number % len(videos)].name, root / name
        )
        choices = [f"{'ABCD'[n]}. {evil}{n}" for n in range(4)]
        row = {"id": evil, "video_path": name, "question": evil, "choices": choices, "support_frames": []}
        rows.append({**row, "answer": choices[number % 4]})
    (root / "train.json").write_text(json.dumps({"__count__": len(rows), "data": rows}))
    return root


def test_a_hostile_dataset_stays_text_in_every_output(dashvlm, dataset, tmp_path):
    words = ["model=smolvlm2", "model.checkpoint=tiny", "task=mcq", "data=roadbuddy", f"data.root={dataset}",
             "data.num_frames=1", "data.sampling=uniform", "trainer.accelerator=cpu", "trainer.max_steps=1",
             "objective.max_new_tokens=4", "data.max_bad_fraction=1.0"]  # fmt: skip
    output = tmp_path / "runs"
    said = [dashvlm("train", *words), dashvlm("inspect", *words[3:5], "task=mcq"), dashvlm("report", "html=true")]
    with Trials("injection: outputs of a run") as trials:
        for done in said:
            trials.check(not CONTROL.search(done.stdout + done.stderr), "terminal")
        ours = [p for p in output.rglob("*") if not {".cache", "checkpoints", "adapter"} & set(p.parts)]
        files = [p for p in ours if p.is_file()]
        for path in files:
            if path.suffix == ".csv":
                with path.open(newline="", encoding="utf-8") as file:
                    found = [c for row in csv.reader(file) for c in row if is_formula(c)]
                trials.check(not found, (path.name, found[:2]))
            elif path.suffix in (".md", ".log"):
                text = path.read_text(encoding="utf-8")
                trials.check(not CONTROL.search(text), path.name)
                trials.check(path.suffix == ".log" or not live_markdown(text), path.name)
            elif path.suffix == ".html":
                trials.check(not live_html(path.read_text(encoding="utf-8")), path.name)
        pages = [p for p in files if p.suffix == ".html"]
        assert pages
        assert "&lt;script&gt;alert(1)" in pages[0].read_text(encoding="utf-8")
        assert any(p.name == "submission.csv" for p in files)


def test_a_hostile_run_stays_text_in_a_report(dashvlm, finished_run, tmp_path):
    """Names and alarms of a fetched run: every string in its configuration and its result."""
    run = tmp_path / "runs" / finished_run.name
    shutil.copytree(finished_run, run)
    other = tmp_path / "runs" / "crash-other"
    shutil.copytree(finished_run, other)
    config = yaml.safe_load((run / "config.yaml").read_text())
    result = json.loads((run / "result.json").read_text())
    result["alarms"] = list(EVIL)
    config["model"]["name"], config["data"]["name"], config["study"] = EVIL[0], "<script>x</script>", EVIL[5]
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    (run / "result.json").write_text(json.dumps(result))
    done = dashvlm("report", "html=true")
    with Trials("injection: a fetched run") as trials:
        trials.check(not CONTROL.search(done.stdout + done.stderr), done.stdout[-500:])
        output = tmp_path / "runs"
        with (output / "report.csv").open(newline="", encoding="utf-8") as file:
            trials.check(not [c for row in csv.reader(file) for c in row if is_formula(c)])
        trials.check(not live_markdown((output / "report.md").read_text()), "md")
        trials.check(not live_html((output / "report.html").read_text()), "html")
        tex = (output / "report.tex").read_text()
        trials.check("\\input" not in tex and "\\write" not in tex, "tex")
