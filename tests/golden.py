"""What must not change by accident: numbers, rows and tables of small runs of every task and objective.

python -m tests.golden FILE        writes the record
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from .conftest import SMALL_WORLD, in_this_process

SHORT = [*SMALL_WORLD, "model.checkpoint=tiny", "trainer=cpu", "trainer.max_steps=2", "trainer.val_every_n_steps=1"]
CELLS = {
    "crash-sft": ["model=smolvlm2", "task=crash"],
    "crash-reasoned": ["model=smolvlm2", "task=crash", "task.reasoning=true", "peft=full", "objective.generate=true"],
    "crash-pooled": ["model=qwen2_5_vl", "task=crash", "objective=pooled", "data.num_frames=2"],
    "crash-grpo": ["model=smolvlm2", "task=crash", "task.reasoning=true", "objective=grpo", "peft=full",
                   "objective.num_generations=2", "data.batch_size=2"],
    "mcq-letters": ["model=internvl3", "task=mcq", "task.reorder=true", "task.prompt=simple", "peft=full"],
    "mcq-texts": ["model=smolvlm2", "task=mcq", "task.answer_with=text", "objective.generate=true"],
    "scene-sft": ["model=qwen3_vl", "task=scene", "data.num_frames=2", "peft=full",
                  "objective.prefix='{\"weather\": \"Clear\", \"scene\": \"City street\"}'"],
    "caption-sft": ["model=openflamingo", "task=caption", "data.num_frames=1", "task.text_dropout=0.5",
                    "objective.prefix='Sidewalk: left. Road: front. RoadVsSidewalk: right. Nearby: car front.'"],
    "caption-free": ["model=smolvlm2", "task=caption", "data.num_frames=1", "task.style=caption", "peft=full"],
    "caption-dpo": ["model=smolvlm2", "task=caption", "data.num_frames=1", "objective=dpo", "peft=full",
                    "task.pairs=wrong_positions"],
}  # fmt: skip
LEFT_OUT = ("run_id", "seconds", "latency_s", "peak_memory_gb", "device", "commit", "versions", "checkpoint",
            "overrides", "sweep_id", "devices")  # fmt: skip
"""Of ``result.json``: what depends on the machine, the clock or the folder."""
NUMBER = r"\d+\.\d+"


def record(cells, cache, folder):
    """Run some cells; return what they wrote, by cell."""
    made = {}
    for name in cells:
        place = folder / name
        call = in_this_process(cache, place)
        words = [*SHORT, *CELLS[name], *(["objective.max_new_tokens=12"] if name != "crash-pooled" else [])]
        call("train", *words)
        (run,) = (p.parent for p in place.glob("*/result.json"))
        call("evaluate", f"run={run}", "seed=7")
        (scored,) = (p.parent for p in place.glob("eval-*/result.json"))
        given = _input(run, place)
        call("predict", f"run={run}", f"input={given}", "stride_s=1", f"output={place / 'out'}")
        call("report", "html=false", output=place)
        made[name] = {
            "train": _run(run), "evaluate": _run(scored), "report": _text((place / "report.md").read_text()),
            "predict": [json.loads(line) for line in (place / "out" / "predictions.jsonl").read_text().splitlines()],
        }  # fmt: skip
        if name == "crash-sft":
            call("export", f"run={run}", f"output={place / 'export'}")
            files = (p.relative_to(place / "export").as_posix() for p in (place / "export").rglob("*") if p.is_file())
            made[name]["export"] = sorted(files)
            call("train", *words, "-m", "data.num_frames=2,3")
            made[name]["sweep"] = _text((place / "summary.md").read_text())
    return made


def _input(run, place):
    """Files and questions without answers, of the run's own world."""
    rows = pd.read_parquet(run / "predictions.parquet").head(2)
    lines = []
    for number, row in enumerate(rows.to_dict("records")):
        file = place / f"in{number}{Path(row['path']).suffix}"
        file.write_bytes(Path(row["path"]).read_bytes())
        asked = {k: list(row[k]) if k == "choices" else row[k] for k in ("question", "choices") if k in row}
        lines.append(json.dumps({"id": f"q{number}", "video": file.name, **asked}))
    (place / "in.jsonl").write_text("\n".join(lines))
    return place / "in.jsonl"


def _run(folder):
    result = json.loads((folder / "result.json").read_text())
    table = pd.read_parquet(folder / "predictions.parquet").drop(columns=["latency_s", "path"])
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    result["metrics"] = {k: v for k, v in result["metrics"].items() if not k.startswith("latency")}
    return {
        "result": {k: v for k, v in result.items() if k not in LEFT_OUT},
        "rows": {name: _plain(table[name].tolist()) for name in table},
        "files": [f for f in files if not re.match(r"\.lock|checkpoints/|metrics/|failed", f)],
    }


def _plain(value):
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _text(table):
    """A table without the hash in names of runs, times and machines."""
    lines = [line.split(" | ") for line in re.sub(r"-[0-9a-f]{8}\b", "-########", table).split("\n")]
    clock = [i for line in lines for i, title in enumerate(line) if title in ("seconds", "s/sample")]
    text = "\n".join(" | ".join(c for i, c in enumerate(line) if len(line) < 3 or i not in clock) for line in lines)
    return re.sub(r" in /\S+", " in FOLDER", text)


def differences(old, new, tolerance, path=""):
    """Where two records differ: numbers by more than a tolerance, anything else at all."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        lacking = [f"{path}.{k}: only in the {'old' if k in old else 'new'}" for k in keys if (k in old) != (k in new)]
        both = [k for k in keys if k in old and k in new]
        return lacking + [d for k in both for d in differences(old[k], new[k], tolerance, f"{path}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{path}[{i}]")]
    if isinstance(old, str) and isinstance(new, str) and path.endswith((".report", ".sweep")):
        words = [[float(w) if re.fullmatch(NUMBER, w) else w for w in re.split(f"({NUMBER})", t)] for t in (old, new)]
        return differences(*words, tolerance, f"{path}:text") if len(words[0]) == len(words[1]) else [
            f"{path}: {old!r} is now {new!r}"]  # fmt: skip
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
    same = abs(old - new) <= tolerance if numbers else old == new
    return [] if same else [f"{path}: {str(old)[:300]!r} is now {str(new)[:300]!r}"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="golden") as place:
        made = record(CELLS, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(place) / "cache", Path(place) / "golden")
        Path(sys.argv[1]).write_text(json.dumps(made, ensure_ascii=False, sort_keys=True))
