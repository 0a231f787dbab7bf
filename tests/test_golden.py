"""Numbers, rows, files and tables of small runs of every task and objective are as they were (``tests/golden.json``).

What changes them on purpose makes the record anew (``make golden``) and says in the changelog which right value
replaced which wrong one.
"""

import json
import os

import pytest

from dashvlm.data.formats.synthetic import rows

from .conftest import ROOT
from .golden import CELLS, differences, record

# Other processors round otherwise; after two optimiser steps that stays below this.
TOLERANCE = float(os.environ.get("GOLDEN_TOLERANCE", "2e-3"))
RECORD = json.loads((ROOT / "tests" / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.long
@pytest.mark.parametrize("cell", CELLS)
def test_runs_are_as_recorded(cell, cache, tmp_path):
    now = json.loads(json.dumps(record([cell], cache, tmp_path / "golden")))
    assert differences(RECORD[cell], now[cell], TOLERANCE) == []


def test_differences_are_found():
    old = {"a": [1.0, "x"], "b": {"report": "AUC 0.51 [0.4,0.6]"}, "c": None, "d": True}
    assert differences(old, old, 0) == []
    assert differences(old, {**old, "a": [1.0 + 1e-4, "x"]}, 1e-3) == []
    others = [("b", {"report": text}) for text in ("AUC 0.61 [0.4,0.6]", "AP 0.51 [0.4,0.6]", "")]
    others += [("a", [1.1, "x"]), ("a", [1.0, "y"]), ("a", [1.0]), ("b", {}), ("c", 0), ("d", False)]
    for key, value in others:
        assert differences(old, {**old, key: value}, 1e-3), (key, value)
    assert differences(old, {**old, "e": 1}, 1e-3)
    assert set(RECORD) == set(CELLS)


def test_the_embedded_world_is_the_same_each_time(tmp_path):
    """Equal settings have equal clips, so that a run has one name on every machine."""
    options = {"num_drives": 6, "seed": 0, "horizon_s": 0.5, "duration_s": 4.0, "fps": 5, "width": 64, "height": 64}
    worlds = []
    for turn in ("a", "b", "c"):
        list(rows(tmp_path / turn, options))
        files = sorted((tmp_path / turn / "videos").iterdir())
        worlds.append([(p.name, p.read_bytes()) for p in files])
    assert len(worlds[0]) == 12
    assert worlds[0] == worlds[1] == worlds[2]
