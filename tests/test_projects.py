"""The five projects: every setting equal or explained, every capability with a key that composes and a proof."""

import re
import shlex

import pytest
import yaml

from dashvlm.config.cli import composing
from dashvlm.config.overrides import check_overrides, plain
from dashvlm.tasks.check import check

from .config_pages import compose_all, settings_of, settings_page, value_of
from .conftest import ROOT

SETTINGS = yaml.safe_load((ROOT / "experiments" / "settings.yaml").read_text(encoding="utf-8"))
VERBS = ("train", "evaluate", "predict", "inspect", "label", "report", "export", "score")
PAGE = ROOT / "docs" / "projects.md"


@pytest.fixture(scope="module")
def composed():
    return compose_all(SETTINGS)


def test_no_difference_is_without_a_reason_and_no_reason_without_a_difference(composed):
    wrong = []
    for name in SETTINGS:
        for x in settings_of(name, SETTINGS):
            ours = {k: value_of(composed[name], k) for k in x["keys"]}
            if ours != x["keys"] and not x.get("why"):
                wrong.append(f"{name}, {x['setting']}: theirs {x['keys']}, ours {ours}, and no reason")
            if x["keys"] and ours == x["keys"] and x.get("why"):
                wrong.append(f"{name}, {x['setting']}: equal, with a reason for a difference")
            if not x["keys"] and not x.get("why"):
                wrong.append(f"{name}, {x['setting']}: neither a key nor a reason")
    assert wrong == []


def test_an_unexplained_difference_would_be_seen(composed):
    """The comparison above reads the configuration: another learning rate is found."""
    mine = {**composed["roadbuddy"], "optim": {**composed["roadbuddy"]["optim"], "lr": 1e-3}}
    (rate,) = [x for x in settings_of("roadbuddy", SETTINGS) if "optim.lr" in x["keys"]]
    assert value_of(mine, "optim.lr") != rate["keys"]["optim.lr"] == value_of(composed["roadbuddy"], "optim.lr")


def test_the_page_of_settings_is_not_stale_and_its_experiments_pass_the_check(composed):
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(SETTINGS, composed), "make docs"
    for name, config in composed.items():
        errors = [e for e in check(config) if "model.checkpoint" not in e]
        assert errors == [], name
    named = {p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert {n for n in named if not n.endswith(("_demo", "_base", "_24gb"))} == set(SETTINGS)


def rows():
    """Each row of the page: project, what, here, proof."""
    project = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            project = line[3:]
        if project and line.startswith("| ") and not line.startswith(("| what the ", "| theirs ", "|---")):
            yield (project, *(c.strip() for c in line.strip().strip("|").split(" | ")))


@pytest.mark.long
def test_every_capability_has_a_key_that_composes_and_a_proof_or_a_reason(tmp_path):
    known = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    mine = tmp_path / "mine.j2"
    mine.write_text("{% for age in ages_s %}{{ image }}{% endfor %}{{ question }}")
    wrong, seen = [], 0
    with composing():
        for row in rows():
            seen += 1
            if len(row) != 4:
                wrong.append(f"{row}: not three cells")
                continue
            _, what, here, proof = row
            named = re.findall(r"`([^`]+)`", here)
            wrong += [f"{what}: {t} is no test" for t in re.findall(r"`(\w+\.py::\w+)`", proof) if t not in known]
            if "MISSING" in proof or "TEST?" in proof or not (named or "–" in here):
                wrong.append(f"{what}: {here}, {proof}")
            if "::" not in proof and len(proof.split()) < 3:
                wrong.append(f"{what}: no test, and no reason")
            for words in named:
                wrong += [f"{what}: {e}" for e in composes(words.replace("=PROMPT", f"={mine}"), targets)]
    assert wrong == []
    assert seen >= 200


def composes(text, targets):
    """What is wrong with a command or with keys that the page names."""
    first, *rest = shlex.split(text)
    if first == "make":
        return [] if rest[0] in targets else [f"make {rest[0]}: no such target"]
    if (ROOT / text).exists():
        return []
    verb, words = (first, rest) if first in VERBS else ("train", [first, *rest])
    if verb == "train" and not all("=" in w for w in words):
        return [f"{text}: neither a file nor keys"]
    if any(w.startswith("data.root=hf://") for w in words):
        return []  # needs the network; test_hub_runs.py has the hub
    from hydra import compose

    try:
        check_overrides(verb, words)
        plain(compose(verb, overrides=words))
    except Exception as error:
        return [f"{text}: {str(error)[:300]}"]
    return []
