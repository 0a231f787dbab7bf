"""Sweeps: plan the grid, run each job in a fresh process, skip what is done, print one table.

A job is a folder with a ``config.yaml``; it runs as ``python -m dashvlm.engine.job FOLDER``, whatever
launcher or sweeper started it. So jobs share no state, ``ddp`` re-launches one job and not the
sweep, and any job can be run again by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dashvlm.backbones.twin_files import model_fingerprint
from dashvlm.config.cli import compose_train, composing, explain, overrides_of, take_config_dir
from dashvlm.config.identity import run_id
from dashvlm.config.overrides import (
    check_overrides,
    check_secrets,
    check_words,
    flags_first,
    make_private,
    plain,
    refuse,
    with_quotes,
)
from dashvlm.data.manifest import Manifest, fingerprint
from dashvlm.engine.job import LOCK, locked
from dashvlm.errors import UNUSABLE, ConfigError, DashVLMError, unusable
from dashvlm.report.collect import axes_of, collect, read_result, run_status
from dashvlm.safety import checksums, signals
from dashvlm.safety.files import read_lines, read_yaml, write_yaml
from dashvlm.safety.plaintext import cells, say
from dashvlm.tasks.check import check

PLAN = "DASHVLM_SWEEP_PLAN"
POINT = ("num_frames", "frame_interval_s", "horizon_s", "sampling", "sample_fps", "reference",
         "negative_reference", "sampling_seed", "support_frames", "support_num_frames")  # fmt: skip
"""Keys of ``data`` that decide which times a job looks at."""


@dataclass
class Plan:
    """What is known of a sweep before it starts.

    Attributes:
        sweep_id: hash of the command line, so that the same sweep has the same folder.
        folder: where its job list and summary go.
        axes: the swept keys.
        grid: the distinct sampling points of all jobs.
        configs: configuration of each job; empty if a sweeper decides as it goes.
        base: configuration without the swept keys, or of the first job.
    """

    sweep_id: str
    folder: Path
    axes: list[str]
    grid: list[dict[str, Any]] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)


def make_plan(overrides: Sequence[str]) -> Plan:
    """Compose and check every job of a sweep.

    Raises:
        ConfigError: with the errors of all jobs at once.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    with composing():
        check_overrides("train", overrides)
        parser = OverridesParser.create()
        try:
            parsed = parser.parse_overrides(list(overrides))
        except OverrideParseException as error:
            raise ConfigError(
                "a word of the command line cannot be read", got=f"{error.override}: {error.message}",
                do="write key=value; a value with = or spaces needs quotes inside, such as 'start_from=[\"a=b\"]'",
            ) from None  # fmt: skip
        swept = [o for o in parsed if o.is_sweep_override()]
        adaptive = any(o.key_or_group == "hydra/sweeper" for o in parsed)
        ranges = [o.input_line for o in swept if o.is_interval_sweep()]
        if ranges and not adaptive:
            raise ConfigError(
                f"{ranges[0]}: an interval has no list of values", do="add hydra/sweeper=optuna, which draws from it; "
                "or list the values, as in optim.lr=1e-5,1e-4",
            )  # fmt: skip
        fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        jobs = [] if adaptive else _jobs(overrides)
        configs = [_composed(job) for job in jobs]
        base = configs[0] if configs else _composed(fixed)
    refuse(error for cfg in configs or [base] for error in check(cfg))
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    folder = Path(base["paths"]["output_dir"]) / "sweeps" / digest
    grid = {json.dumps({k: c["data"].get(k) for k in POINT}, sort_keys=True) for c in configs}
    return Plan(
        digest,
        folder,
        [o.key_or_group for o in swept],
        [json.loads(g) for g in sorted(grid)],
        configs,
        base,
    )


def launch(argv: list[str]) -> int:
    """Run ``dashvlm.train``: one job or a sweep.

    Returns:
        The exit code: 0 if everything finished, 1 if a job failed, 2 for a wrong configuration.

    Raises:
        Interrupted: if it, or a job of it, was asked to stop.
    """
    from dashvlm.config.cli import HYDRA_FLAGS, start

    argv = with_quotes(flags_first(take_config_dir(argv)))
    multi = any(a in ("-m", "--multirun") for a in argv)
    if any(a.split("=")[0] in HYDRA_FLAGS for a in argv):
        return start("train", lambda cfg: None, argv)
    plan = None
    try:
        check_secrets(overrides_of(argv))
        check_words(overrides_of(argv))
        plan = make_plan(overrides_of(argv))
        if plan.axes and not multi:
            raise ConfigError(f"{', '.join(plan.axes)}: several values make a sweep", do="add -m behind the verb")
        make_private(plan.base)
        if multi:
            plan.folder.mkdir(parents=True, exist_ok=True)
            (plan.folder / "jobs.jsonl").unlink(missing_ok=True)
            note = {"id": plan.sweep_id, "grid": plan.grid, "axes": plan.axes}
            (plan.folder / "plan.json").write_text(json.dumps(note), encoding="utf-8")
            os.environ[PLAN] = str(plan.folder / "plan.json")
        _print_feasibility(plan)
    except DashVLMError as error:
        explain(error)
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        explain(unusable(error, Path(plan.base["paths"]["output_dir"]) if plan else None))
        return 2
    if any(a.startswith("hydra/sweeper=optuna") for a in argv) and "hydra.sweeper.direction" not in " ".join(argv):
        mode = plan.configs[0] if plan.configs else plan.base
        better = "maximize" if mode["callbacks"]["checkpoint"]["mode"] == "max" else "minimize"
        argv = [*argv, f"hydra.sweeper.direction={better}"]
    code = start("train", job, argv)
    if multi and (plan.configs[0] if plan.configs else plan.base)["trainer"]["data_only"]:
        return code  # the data were looked at; there is no run to put into a table
    return code or (summarise(plan) if multi else _SINGLE.get("code", 0))


_SINGLE: dict[str, int] = {}


def job(cfg: DictConfig) -> float:
    """Run one configuration in a fresh process, unless it is done; Hydra's task function.

    Returns:
        The best validation value, for sweepers that optimise; the worst there is if the job failed.
    """
    config = plain(cfg)
    refuse(check(config))
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    # An optimising sweeper's points are known only now.
    overrides = [o for o in hydra.overrides.task if not o.startswith("hydra")]
    plan_file = os.environ.get(PLAN)
    sweep = json.loads(Path(plan_file).read_text(encoding="utf-8")) if plan_file else {}
    config["sweep"] = {
        "id": sweep.get("id"),
        "grid": sweep.get("grid") or [],
        "overrides": overrides,
    }
    if config["trainer"]["data_only"]:
        _check_data(config)
        return 0.0
    folder, code = finish(config)
    if folder is None:
        _SINGLE["code"] = code
        return float("-inf") if config["callbacks"]["checkpoint"]["mode"] == "max" else float("inf")
    if not plan_file:
        _SINGLE["code"] = code
        if code == 0:
            _print_run(folder)
    best = (read_result(folder).get("validation") or {}).get("best")
    worst = float("-inf") if config["callbacks"]["checkpoint"]["mode"] == "max" else float("inf")
    return float(best) if best is not None else worst


def finish(config: dict[str, Any], quiet: bool = False) -> tuple[Path | None, int]:
    """Run a checked configuration, unless it is done; first the run that it starts from, where that is not there.

    Args:
        config: resolved; what identifies it is filled in.
        quiet: print nothing; the run's log has it all.

    Returns:
        The run's folder, None if the run that it starts from failed; and an exit code.

    Raises:
        ConfigError: if ``start_from`` names no finished run.
        Interrupted: if it was asked to stop.
    """
    if isinstance(config["start_from"], list):
        config["start_from"], code = _first_run(config, quiet)
        if code:
            return None, code
    elif config["start_from"]:
        start = Path(config["start_from"]).resolve()
        if not (start / "trained.safetensors").is_file():
            raise ConfigError(
                f"start_from={config['start_from']} is no finished run", got="it has no trained.safetensors",
                do="name the folder of a finished run",
            )  # fmt: skip
        config["start_from"] = str(start)
    name, folder = _folder_of(config)
    if plan_file := os.environ.get(PLAN):
        with (Path(plan_file).parent / "jobs.jsonl").open("a", encoding="utf-8") as file:
            line = {"run_id": name, "folder": str(folder), "overrides": config["sweep"]["overrides"]}
            file.write(json.dumps(line) + "\n")
    return folder, run_in_fresh_process(config, folder, quiet)


def _folder_of(config: dict[str, Any]) -> tuple[str, Path]:
    """Name a job by what decides its result, and make its folder."""
    config["data"]["fingerprint"] = fingerprint(_manifest(config))
    config["model"] |= model_fingerprint(config["model"])
    name = run_id(config)
    folder = Path(config["paths"]["output_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    return name, folder


def _first_run(config: Mapping[str, Any], quiet: bool) -> tuple[str, int]:
    """Make the run that ``start_from`` describes, unless it is there; return its folder and an exit code."""
    words = [str(word) for word in config["start_from"]]
    places = [f"paths.{key}={config['paths'][key]}" for key in ("output_dir", "cache_dir", "data_dir")]
    check_overrides("train", words)
    first = _composed([*words, *places])
    refuse(f"start_from={' '.join(words)}: {error}" for error in check(first))
    first["sweep"] = {"id": None, "grid": [], "overrides": words}
    _, folder = _folder_of(first)
    return str(folder), run_in_fresh_process(first, folder, quiet)


def run_in_fresh_process(config: Mapping[str, Any], folder: Path, quiet: bool = False) -> int:
    """Run a configuration in its folder: skip a finished one, resume a broken one.

    The child has the terminal to itself, so that progress bars stay live; it writes its own log.

    Returns:
        The child's exit code; 0 if the run was finished before.

    Raises:
        Interrupted: if it was asked to stop.
    """
    say_of = _say if not quiet else lambda folder, what: None
    with locked(folder) as lock:
        status = run_status(folder)
        if status == "done":
            say_of(folder, "done before, skipped (remove the folder to run it again, with another logger say)")
            late = _too_late(config, folder)
            if late:
                say_of(folder, f"{', '.join(late)}: no effect on a finished run; `dashvlm evaluate run={folder}` takes "
                       "csv=true and verbose=true")  # fmt: skip
            return 0
        if status == "damaged":
            say_of(folder, "result.json or failed.json is damaged, running again")
        elif status in ("failed", "oom") and not read_result(folder).get("resumable"):
            say_of(folder, "failed before, running again")
            for path in (folder / "checkpoints").glob("*.ckpt"):
                path.unlink()
        elif list((folder / "checkpoints").glob("last*.ckpt")):
            say_of(folder, "was interrupted, resuming")
        else:
            say_of(folder, "starting")
        if checksums.changed(folder, ["config.yaml"]):
            say_of(folder, "config.yaml was changed by hand; what counts is the command line")
        write_yaml(folder / "config.yaml", config)
        checksums.note(folder, ["config.yaml"])
        code = _in_fresh_process(folder, lock.fileno(), *([True] if quiet else []))
        if code > 128:
            with (folder / "job.log").open("a", encoding="utf-8") as log:
                log.write(f"the process was ended by {signals.name_of(code)}; the same command resumes it\n")
        if signals.is_stop(code):
            raise signals.Interrupted(code - 128)
        if code:
            say_of(folder, f"failed (exit code {code}); see {folder / 'job.log'}")
        return code


def summarise(plan: Plan) -> int:
    """Print and write the table and plot of a sweep; return 1 if any job is not done."""
    from dashvlm.report.comparisons import comparison_notes
    from dashvlm.report.sweep_plot import plot_sweep
    from dashvlm.report.tables import notes_of, print_table, sweep_rows, to_markdown

    jobs = plan.folder / "jobs.jsonl"
    lines = read_lines(jobs) if jobs.exists() else []
    folders = list(dict.fromkeys(Path(line["folder"]) for line in lines))
    if not folders:
        return 1
    table = collect(folders)
    axes = axes_of(table, plan.axes) or axes_of(table)[:3]
    header, body = sweep_rows(table, axes)
    output = plan.folder.parent.parent
    notes = notes_of(table) + comparison_notes(output, table)
    say()
    print_table(f"sweep {plan.sweep_id}: {len(folders)} runs", header, body, notes)
    for target in (plan.folder, output):
        cells(table).to_csv(target / "summary.csv", index=False)
        (target / "summary.md").write_text(to_markdown(header, body, notes), encoding="utf-8")
        plot_sweep(table, axes, target / "summary.png")
    say(f"written: {output}/summary.csv, summary.md, summary.png (kept in {plan.folder})")
    return 0 if (table["status"] == "done").all() else 1


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    return compose_train([o for o in overrides if not o.startswith("hydra")])


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Expand a command line's sweep into the overrides of each job, as Hydra's sweeper will."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()  # glob() asks it for the choices of a group
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [list(j) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for j in batch]


def _print_feasibility(plan: Plan) -> None:
    """Say before anything trains for how many clips each sweep point has enough history."""
    from dashvlm.data.samples import feasibility
    from dashvlm.report.tables import print_table

    shown: dict[str, list[list[str]]] = {}
    for cfg in plan.configs:
        data = cfg["data"]
        manifest = _manifest(cfg)  # a missing dataset is one error now, not one a job
        if data["sampling"] != "anchored":
            continue
        point = (int(data["num_frames"]), float(data["frame_interval_s"]))
        row = feasibility(manifest.clips, data, [point])[0]
        cells = [str(row["num_frames"]), f"{row['frame_interval_s']:g}", f"{row['needs_s']:g} s",
                 f"{row['feasible']}/{row['clips']}", data["short_history"]]  # fmt: skip
        rows = shown.setdefault(f"{data['name']} in {Path(data['root'])}, horizon {data['horizon_s']:g} s", [])
        if cells not in rows:
            rows.append(cells)
    for title, rows in shown.items():
        header = [
            "num_frames",
            "frame_interval_s",
            "history needed",
            "clips that have it",
            "otherwise",
        ]
        rows.sort(key=lambda r: (int(r[0]), float(r[1])))
        print_table(f"feasibility: {title}", header, rows)


def _manifest(config: Mapping[str, Any]) -> Manifest:
    """Load a job's manifest, once for all jobs that differ in what they look at only."""
    from dashvlm.engine.load import build_store, load_manifest

    rest = {k: v for k, v in config["data"].items() if k not in POINT}
    key = json.dumps(rest, sort_keys=True, default=str)
    if key not in _MANIFESTS:
        _MANIFESTS[key] = load_manifest(config, build_store(config))
    return _MANIFESTS[key]


_MANIFESTS: dict[str, Manifest] = {}


def forget_manifests() -> None:
    """For a process that goes on while data change, such as a notebook's."""
    _MANIFESTS.clear()


def _print_run(folder: Path) -> None:
    from dashvlm.report.tables import detail_tables, print_table, result_table, result_title

    result = read_result(folder)
    header, body = result_table(result)
    for title, names, rows in detail_tables(result):
        print_table(title, names, rows)
    title = result_title(folder.name, result)
    print_table(title, header, body, result["alarms"])
    say(f"written: {folder}/")


def _check_data(config: Mapping[str, Any]) -> None:
    from dashvlm.engine.prepare import check_data
    from dashvlm.report.tables import print_table

    rows = check_data(config)
    header = list(rows[0])
    print_table(f"{config['data']['name']}: data only, no model loaded", header,
                [[str(v) for v in row.values()] for row in rows])  # fmt: skip


def _too_late(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Words that a finished run was not made with, and that would have written more."""
    made = read_yaml(folder / "config.yaml")
    late = [f"{key}=true" for key in ("csv", "verbose") if config.get(key) and not made.get(key)]
    keep, kept = (((c.get("callbacks") or {}).get("checkpoint") or {}).get("keep") for c in (config, made))
    return late + ([f"callbacks.checkpoint.keep={keep}"] if keep and not kept else [])


def _in_fresh_process(folder: Path, lock: int, quiet: bool = False) -> int:
    """Run a folder's configuration; the child keeps the lock as long as it lives."""
    silent = subprocess.DEVNULL if quiet else None
    child = subprocess.Popen(
        [sys.executable, "-m", "dashvlm.engine.job", str(folder)], pass_fds=[lock], stdout=silent, stderr=silent,
        env={**os.environ, LOCK: str(lock)},
    )  # fmt: skip
    return signals.wait_for(child)


def _say(folder: Path, what: str) -> None:
    say(f"[{folder.name}] {what}")
