"""Every command of the documentation: executed here, or marked with what it needs and composed."""

import csv
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dashvlm.config.find import study_names
from dashvlm.data.synthetic.encode import counter_frame, write_video
from dashvlm.reproductions.studies import load_study

from .conftest import ROOT, SMALL, in_this_process

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "projects.md")  # test_projects.py composes its commands
NEEDS = ("data", "a GPU", "a key", "a download", "a W&B account", "the checkpoint", "the published predictions",
         "a caption run", "a file of predictions", "a run", "a network", "a CLIP model", "pictures")  # fmt: skip
# The same path on a world of a few clips, a few steps.
SHRINK = [
    "data.options.num_drives=40", "data.options.duration_s=4.0", "data.options.fps=5", "trainer.max_steps=2",
    "objective.max_new_tokens=8",
]  # fmt: skip
ELSEWHERE = {"make test", "make install", "make bench", "make docs", "make faults", "make test-long", "make golden"}
"""Run by CI itself (two), too long for a test, tested by its result."""


def found():
    """Yield page, command and what it is marked to need: lines of bash blocks, and commands in the text."""
    for page in PAGES:
        text, header = page.read_text(encoding="utf-8"), []
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words, _, comment = line.partition(" #")
                if words.strip():
                    yield page, words.strip(), needs_of(comment)
        for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
            if line.startswith("#"):
                continue
            cells = [c.strip() for c in line.strip("| ").split("|")]
            if set(line) <= set("|- ") or not line.startswith("|"):
                header = header if line.startswith("|") else []
            elif not header:
                header = cells
            for words in re.findall(r"`((?:python -m dashvlm\.|make )[^`]+)`", line):
                in_table = header and header[-1] == "needs"
                yield page, words, cells[-1] if in_table else needs_of(line.split(words, 1)[1])


def needs_of(text):
    """What stands behind ``needs:``, up to the end or a bracket; empty if nothing does."""
    return (re.findall(r"needs: ([^);]*)", text) or [""])[0].strip()


COMMANDS = {words: (needs, page) for page, words, needs in found()}
MARKED = sorted(words for words, (needs, _) in COMMANDS.items() if needs)
UNMARKED = sorted(words for words, (needs, _) in COMMANDS.items() if not needs)


def test_there_are_commands_of_both_kinds():
    assert len(MARKED) > 25
    assert len(UNMARKED) > 35
    assert all(part in NEEDS for words in MARKED for part in COMMANDS[words][0].split(", ")), [
        COMMANDS[w][0] for w in MARKED
    ]


def test_a_command_is_marked_alike_on_all_pages():
    for page, words, needs in found():
        assert needs == COMMANDS[words][0], f"{page}: {words}"


@pytest.mark.parametrize("line", MARKED)
def test_what_needs_more_than_this_machine_is_spelled_right(line, tmp_path, monkeypatch):
    from dashvlm.config import overrides
    from dashvlm.config.cli import composing, overrides_of
    from dashvlm.config.overrides import check_overrides, plain
    from dashvlm.tasks.check import check

    (tmp_path / "mine.j2").write_text("{% for age in ages_s %}{{ image }}{% endfor %}")
    monkeypatch.setattr(overrides, "from_hub", lambda root, folder: folder)
    words = shlex.split(line.replace("mine.j2", str(tmp_path / "mine.j2")), comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(w in targets for w in words[1:] if "=" not in w), line
        return
    if words[:2] != ["python", "-m"]:
        assert words[0] in ("pip", "export"), line
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


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """What the commands' placeholders stand for: runs, a clip, a label file."""
    folder = tmp_path_factory.mktemp("docs")
    call = in_this_process(cache, folder / "runs")
    call("train", *SMALL, "-m", "data.num_frames=2,3", "trainer.max_steps=2")
    runs = sorted(p.parent for p in (folder / "runs").glob("*/result.json"))
    write_video(folder / "clip.mp4", (counter_frame(i) for i in range(40)), [i / 10 for i in range(40)], 10, 0)
    rng = random.Random(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "response"])
        for i in range(80):
            seen = " ".join(rng.choices(["road", "car", "lane", "sky", "sign", "bend"], k=rng.randint(20, 40)))
            writer.writerow([i, i % 2, f"The {seen}."])
    return {
        "runs/RUN": str(runs[0]), "runs/A": str(runs[0]), "runs/B": str(runs[1]), "runs/demo": str(folder / "runs"),
        "clip.mp4": str(folder / "clip.mp4"), "labels.jsonl": str(folder / "labels.csv"),
        "study=NAME": "study=nexar_frames", "data=NAME": "data=synthetic",
    }  # fmt: skip


TAKES_LONG = re.compile(r"_demo|make (demo|stud)|dashvlm\.train .*-m|data=NAME audit=true")
"""Commands that train or make every table; all else takes seconds."""


@pytest.mark.parametrize(
    "line", [pytest.param(x, marks=[pytest.mark.long] * bool(TAKES_LONG.search(x))) for x in UNMARKED]
)
def test_every_other_command_runs(dashvlm, place, tmp_path, monkeypatch, line):
    for placeholder, value in place.items():
        line = line.replace(placeholder, value)
    assert not re.search(r"\b(FOLDER|RUN|FILE|NAME|PROJECT)\b(?!=)", line), f"not marked with what it needs: {line}"
    words = shlex.split(line)
    if words[0] == "make":
        if line not in ELSEWHERE:
            make(words[1:], tmp_path)
        return
    assert words[:2] == ["python", "-m"], line
    verb, said = words[2].removeprefix("dashvlm."), words[3:]
    study = re.match(r"study=(\w+)/smoke", said[0]) if said else None
    if study:  # run by the tests of the studies
        assert said == load_study(study[1]).words("smoke")
        return
    demo = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    if verb == "train" and " ".join(said) in demo:
        return  # a line of `make demo`, which is run
    if (
        said[-1:] == ["data.pixels=off"]
        and line.removesuffix(" data.pixels=off") in UNMARKED
        and "mcq_demo" not in line
    ):
        test_what_needs_more_than_this_machine_is_spelled_right(
            line, tmp_path, monkeypatch
        )  # one word more than a line that is run
        return
    output = place["runs/demo"] if verb == "report" else None
    dashvlm(verb, *(w for w in said if "output_dir" not in w), *shrunk(verb, said), output=output)


def shrunk(verb, said):
    """What makes a command short: a small world, two steps, also for the run that another one starts from."""
    if verb == "label":
        return SHRINK[:3]
    if verb == "inspect":
        return [*SHRINK[:3], "task=crash"] if "data=synthetic" in said else []
    if verb == "evaluate":
        return [*SMALL[4:-1], "trainer.accelerator=cpu"]
    if verb != "train":
        return []
    small = [*SHRINK, "trainer.accelerator=cpu"]
    name = next((w.split("=")[1] for w in said if w.startswith("experiment=")), None)
    path = ROOT / "conf" / "experiment" / f"{name}.yaml"
    start = yaml.safe_load(path.read_text()).get("start_from") if name else []
    if start:
        first = [w.replace("${data.pixels}", "off" if "data.pixels=off" in said else "on") for w in [*start, *small]]
        small = [*small, "start_from=[" + ",".join(f'"{w}"' for w in first) + "]"]
    return small


def make(words, folder):
    """Run a target of the Makefile with this Python, in a folder of its own."""
    binary = Path(sys.executable).parent
    if "RUN=1" in words:  # the study with one job; all others are run by the tests of the studies
        words = [w.replace("nexar_frames", "nexar_grpo") for w in words]
    said = " ".join([*SHRINK, "trainer.accelerator=cpu"]) if words == ["demo"] else ""
    if words == ["studies"]:
        for name in study_names():
            (folder / "studies" / name).mkdir(parents=True)
            for file in (ROOT / "experiments" / name).iterdir():
                (folder / "studies" / name / file.name).write_bytes(file.read_bytes())
        said = f"studies_dir={folder}/studies"
    environment = {**os.environ, "DASHVLM_CACHE": str(folder / "cache")}
    done = subprocess.run(
        ["make", "-o", ".venv/installed", *words, f"BIN={binary}", f"OUT={folder}/runs", f"WORDS={said}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if words == ["demo"]:
        assert len(list((folder / "runs" / "demo").glob("*/result.json"))) == 5
        assert (folder / "runs" / "demo" / "summary.png").is_file()
    elif words == ["studies"]:
        for name in study_names():
            for file in ("table.md", "table.tex", "results.csv"):
                made, kept = folder / "studies" / name / file, ROOT / "experiments" / name / file
                assert made.read_bytes() == kept.read_bytes(), kept
    elif "RUN=1" in words:
        assert list((folder / "runs").glob("*/result.json"))
    else:
        assert "dashvlm.train study=" in done.stdout
