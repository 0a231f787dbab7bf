"""Score predictions that another tool wrote: every number, interval, baseline and alarm that a run of ours gets.

python -m dashvlm.score task=crash predictions=submission.csv truth=train.csv
python -m dashvlm.score task=mcq predictions=answers.csv truth=train/train.json
python -m dashvlm.score task=caption predictions=texts.jsonl truth=FOLDER_OF_BVPI
python -m dashvlm.score task=crash predictions=RUN/predictions.parquet      (a run's own numbers again)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dashvlm.safety.files import read_table
from dashvlm.safety.plaintext import say

if TYPE_CHECKING:
    import pandas as pd

    from dashvlm.predictions.truth import Truth
    from dashvlm.tables.records import Records
    from dashvlm.tasks.base import Task
    from dashvlm.tasks.reading import Reading

OWN = {"sample_id", "clip_id", "group", "horizon_s", "primary", "target", "status", "answer"}
"""Columns of a run's own ``predictions.parquet``, which needs no truth beside it."""


def score(cfg: DictConfig) -> None:
    """Print the table; write it, the rows and ``result.json`` into a folder of their own.

    Raises:
        DataError: if a file cannot be used.
        ConfigError: for an unknown option.
    """
    from dashvlm.config.overrides import plain
    from dashvlm.metrics.captions import NOT_ASKED
    from dashvlm.report.tables import detail_tables, print_table, result_table, result_title, to_markdown
    from dashvlm.reproductions.recompute import print_published
    from dashvlm.safety.checksums import content_of
    from dashvlm.safety.files import write_json
    from dashvlm.tables.records import read_records
    from dashvlm.tasks.base import make_task
    from dashvlm.tasks.evaluation import evaluate

    options = plain(cfg)
    path = Path(str(options["predictions"]))
    records = read_records(path, options["encoding"])
    task = make_task({**options, "task": _task_options(options, records)})
    table, about, notes = _rows(task, records, options)
    kind = task.evaluation
    if kind.unscored is not None and not table["score"].notna().any():
        kind = kind.unscored
    results = evaluate(table, kind)
    unread = table[table["status"].isin(["unparsed", "refused"])]["text"].dropna()
    if len(unread) and not table["answer"].notna().any():
        notes.append(f"no answer could be read, for example {str(unread.iloc[0])[:80]!r}")
    results["alarms"] = [*notes, *results["alarms"]]
    if "SPICE" in results.get("unavailable", {}):
        results["unavailable"]["SPICE"] = NOT_ASKED
        if options["spice"]:
            _add_spice(table, results)
    if options["images"]:
        _add_clip_score(table, results, Path(str(options["images"])), options["clip"])
    folder = Path(options["paths"]["output_dir"]) / f"score-{task.name}-{path.stem}-{content_of(path)[2][:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "predictions.parquet", index=False)
    results |= {"status": "done", "run_id": folder.name, "predictions": str(path), **about}
    write_json(folder / "result.json", results)
    for title, names, lines in detail_tables(results):
        print_table(title, names, lines)
    header, body = result_table(results)
    unavailable = results.get("unavailable", {})
    for why in dict.fromkeys(unavailable.values()):
        results["alarms"].append(f"absent: {', '.join(n for n, w in unavailable.items() if w == why)} ({why})")
    print_table(result_title(f"{path.name}, task={task.name}", results), header, body, results["alarms"])
    (folder / "score.md").write_text(to_markdown(header, body, results["alarms"]), encoding="utf-8")
    if options["published"]:
        print_published(str(options["published"]), path, options)
    say(f"written: {folder}/")


def _rows(task: Task, records: Records, options: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """The table, what it is of, and what was odd."""
    from dashvlm.predictions.columns import find_columns
    from dashvlm.predictions.table import build_table
    from dashvlm.predictions.truth import of_split, own_truth

    if options["truth"] is None and set(records.columns) >= OWN and records.path.suffix == ".parquet":
        table = read_table(records.path)
        return table, {"truth": "its own", "split": "scored"}, []
    truth = _truth(task, options)
    clips = [c.clip_id for c in truth.clips] if truth else []
    columns = find_columns(_reading(task), records, options["columns"], clips, own_truth=truth is None)
    truth = truth or own_truth(_reading(task), records, options, list(columns.used().values()))
    say("columns: " + "; ".join(f"{what} from {name!r}" for what, name in columns.used().items()))
    predicted = [row[columns.id] for row in records.rows if row.get(columns.id) is not None]
    truth = of_split(truth, str(options["split"]), predicted)
    horizon, rule = options["horizon_s"], str(options["clean"])
    table, notes = build_table(task, records, truth, columns, horizon, rule)
    return table, {"truth": truth.source, "split": truth.split}, [*records.notes[:3], *truth.notes, *notes]


def _truth(task: Task, options: Mapping[str, Any]) -> Truth | None:
    """What ``truth=`` names: a file, a folder, or the configured dataset, split as a run would split it."""
    from dashvlm.engine.load import build_store, load_manifest
    from dashvlm.errors import DataError
    from dashvlm.predictions.truth import Truth, read_truth

    if options["truth"] is None:
        return None
    wanted, data = str(options["truth"]), options["data"]
    if Path(wanted).exists():
        return read_truth(_reading(task), Path(wanted), data, options)
    if wanted != data["name"]:
        raise DataError(
            f"truth={wanted} is no file, no folder and no dataset", got="nothing of that name",
            do=f"name a file, or a dataset: truth={data['name']} data.root=FOLDER",
        )  # fmt: skip
    manifest = load_manifest(options, build_store(options), require_videos=False)
    notes = [f"{len(manifest.quarantine)} rows of the dataset cannot be compared"] if manifest.quarantine else []
    return Truth(manifest.clips, f"data={manifest.name} ({data['root']})", notes=notes)


def _reading(task: Task | type[Task]) -> Reading:
    """How the task's predictions stand elsewhere.

    Raises:
        ConfigError: if it does not say so.
    """
    from dashvlm.errors import ConfigError

    if task.reading is None:
        raise ConfigError(f"predictions of other tools cannot be scored for task={task.name}")
    return task.reading


def _task_options(options: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """The task's options, with what the texts decide, such as their style, unless the command line says it."""
    from hydra.core.hydra_config import HydraConfig

    from dashvlm.predictions.columns import find_columns
    from dashvlm.tasks.base import task_class

    task, reading = dict(options["task"]), _reading(task_class(options))
    said = [word.split("=")[0].lstrip("+") for word in HydraConfig.get().overrides.task]
    texts: list[str] = []
    if reading.written:
        column = find_columns(reading, records, options["columns"], own_truth=options["truth"] is None).text
        texts = [str(row.get(str(column)) or "") for row in records.rows]
    decided = reading.options(task, texts)
    return task | {key: value for key, value in decided.items() if f"task.{key}" not in said}


def _add_spice(table: pd.DataFrame, results: dict[str, Any]) -> None:
    from dashvlm.metrics.java import Unavailable, spice

    told = table[table["reference"].notna()]
    texts = [t if isinstance(t, str) else "" for t in told["text"]]
    if not texts:
        return
    try:
        value, _ = spice(told["reference"].tolist(), texts)
    except Unavailable as error:
        results["unavailable"]["SPICE"] = str(error)
        return
    results["metrics"]["SPICE"] = {"value": value, "low": None, "high": None}
    results["unavailable"].pop("SPICE", None)


def _add_clip_score(table: pd.DataFrame, results: dict[str, Any], folder: Path, checkpoint: str | None) -> None:
    """Add CLIPScore of the written texts; where it cannot be computed the reason stands beside the result.

    A picture without text counts as 0. A picture is the file that an id names below the folder, or the only one of its
    name.

    Raises:
        DataError: if a picture is missing, or several have its name.
    """
    from dashvlm.data.pictures import SUFFIXES
    from dashvlm.errors import CheckpointError, DataError
    from dashvlm.metrics.clip import CHECKPOINT, clip_score, clip_scores

    primary = table[table["primary"]] if "primary" in table else table
    known: dict[str, list[Path]] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES:
            known.setdefault(path.name, []).append(path)
    names = [str(i) for i in primary["clip_id"]]
    found = [[folder / n] if (folder / n).is_file() else known.get(Path(n).name, []) for n in names]
    several = [n for n, paths in zip(names, found, strict=True) if len(paths) > 1]
    if several:
        raise DataError(
            f"images={folder}: several pictures could be {several[0]}", got=f"{len(several)} such names",
            do="name the folder that the ids are relative to",
        )  # fmt: skip
    lacking = [n for n, paths in zip(names, found, strict=True) if not paths]
    if lacking:
        raise DataError(
            f"images={folder}: {len(lacking)} of {len(names)} pictures are missing", got=lacking[0],
            do="name the folder that holds the pictures; ids are their names",
        )  # fmt: skip
    texts = zip(found, primary["text"], strict=True)
    written = [(paths[0], t) for paths, t in texts if isinstance(t, str) and t.strip()]
    try:
        scores = clip_scores([p for p, _ in written], [t for _, t in written], checkpoint or CHECKPOINT)
    except CheckpointError as error:
        results.setdefault("unavailable", {})["CLIPScore"] = str(error).splitlines()[0]
        return
    value = clip_score([*scores, *[0.0] * (len(names) - len(scores))])
    results["metrics"]["CLIPScore"] = {"value": value, "low": None, "high": None}
    results.get("unavailable", {}).pop("CLIPScore", None)


def _with_data(argv: list[str]) -> list[str]:
    """``truth=nexar`` names a dataset: choose it as ``data`` too."""
    from dashvlm.config.find import choices_of

    names = set(choices_of("data")) - {"base"}
    wanted = [a.removeprefix("truth=") for a in argv if a.startswith("truth=")]
    chosen = any(a.startswith("data=") for a in argv)
    if wanted and wanted[-1] in names and not chosen and not Path(wanted[-1]).exists():
        return [*argv, f"data={wanted[-1]}"]
    return argv


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start

        return start("score", score, _with_data(sys.argv[1:]))

    sys.exit(signals.run(main))
