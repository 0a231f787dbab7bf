"""What a finished run says of new videos, pictures and questions, without any answers.

python -m dashvlm.predict run=runs/RUN input=FILE|FOLDER|PATTERN|ROWS     (any task)
python -m dashvlm.predict run=runs/RUN video=FILE|FOLDER|PATTERN [overlay=true]         (risk over time, with a page)
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dashvlm.errors import DataError
from dashvlm.safety.plaintext import cells, say


def predict(cfg: DictConfig) -> None:
    """Answers for inputs; or for each video ``risk.csv``, a plot, and a page in which the curve follows the video."""
    from dashvlm.config.cli import log_to_terminal
    from dashvlm.config.overrides import plain
    from dashvlm.engine.run import quiet_libraries
    from dashvlm.errors import ConfigError

    log_to_terminal()
    quiet_libraries()
    if not cfg.run or bool(cfg.video) == bool(cfg.input):
        raise ConfigError(
            "predict needs a run, and either input or video",
            got=f"run={cfg.run}, input={cfg.input}, video={cfg.video}",
            do="python -m dashvlm.predict run=runs/RUN input=FOLDER, or video=clip.mp4 for the risk of one video",
        )  # fmt: skip
    if not cfg.stride_s > 0:
        raise ConfigError("stride_s must be above 0", got=str(cfg.stride_s), do="use 0.2")
    paths = plain(cfg)["paths"]
    if cfg.input:
        folder = Path(cfg.output or f"{paths['output_dir']}/predict-{Path(cfg.run).name}-{Path(cfg.input).stem}")
        predict_inputs(Path(cfg.run), str(cfg.input), paths, folder, float(cfg.stride_s))
        return
    predict_videos(
        Path(cfg.run), str(cfg.video), paths, Path(cfg.output) if cfg.output else None, float(cfg.stride_s),
        bool(cfg.overlay), cfg.events, cfg.event_s,
    )  # fmt: skip


def predict_videos(
    source: Path,
    given: str,
    paths: Mapping[str, Any],
    output: Path | None,
    stride_s: float,
    overlay: bool = False,
    events: str | None = None,
    event_s: float | None = None,
) -> None:
    """Score each video over its whole length; see :func:`dashvlm.engine.over_time.risk_over_time`.

    Args:
        source: folder of a finished run.
        given: a video, a folder of them, or a pattern.
        paths: the ``paths`` group.
        output: where files go; several videos get a folder each below it.
        stride_s: seconds between anchors.
        overlay: also write each video with time and risk drawn in.
        events: a ``.csv`` with a file name, the time of its event and perhaps of the alert a row.
        event_s: time of the event of a single video.

    Raises:
        DataError: if there is no video, or none could be read.
        ConfigError: if the run's task cannot be asked at any moment.
    """
    import torch

    from dashvlm.data.formats.inputs import read_events, videos_of
    from dashvlm.data.guard import Limits, guarded
    from dashvlm.engine.build import at_home, load_run, read_config
    from dashvlm.errors import ConfigError
    from dashvlm.tasks.base import task_class

    videos = videos_of(given)
    known = read_events(Path(events)) if events else {}
    if event_s is not None:
        if len(videos) > 1:
            raise ConfigError("event_s is of one video", got=f"{len(videos)} videos", do="use events=FILE.csv")
        known[videos[0].name] = {"event": float(event_s)}
    if len(videos) == 1:  # an error before the model is loaded
        guarded(Limits(), videos[0], "data.index", "index_video", videos[0])
    config = at_home(source, read_config(source), paths)
    if not task_class(config).over_time:
        raise ConfigError(
            "predict draws the risk of a task that can be asked at any moment", got=f"task={config['task']['name']}",
            do="use input= instead of video=, which writes an answer for each file or row",
        )  # fmt: skip
    config, module = load_run(source, paths)
    module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    failed: dict[Path, str] = {}
    names = _apart(videos)
    there = {video.name for video in videos}
    if unseen := sorted(set(known) - there):
        say(f"  ! events of {len(unseen)} other videos are not used, first {unseen[0]}")
    if known and (without := sorted(there - set(known))):
        say(f"  ! no event is known of {len(without)} videos, first {without[0]}")
    for video in videos:
        folder = output or Path(paths["output_dir"]) / f"predict-{source.name}-{video.stem}"
        folder = folder / names[video] if output and len(videos) > 1 else folder
        marks = {k: v for k, v in known.get(video.name, {}).items() if v is not None}
        try:
            _predict_video(config, module, source.name, video, folder, stride_s, overlay, marks)
        except DataError as error:
            if len(videos) == 1:
                raise
            failed[video] = str(error).splitlines()[0]
            say(f"{video}: failed: {failed[video]}", error=True)
    if len(videos) > 1:
        say(f"{len(videos) - len(failed)} of {len(videos)} videos scored, {len(failed)} failed")
    if len(failed) == len(videos):
        raise DataError("no video could be scored", got="; ".join(list(failed.values())[:3]))


def _apart(videos: Sequence[Path]) -> dict[Path, str]:
    """A folder name for each video, by its stem, with a number where two are equal."""
    seen: Counter[str] = Counter()
    names = {}
    for video in videos:
        seen[video.stem] += 1
        names[video] = video.stem if seen[video.stem] == 1 else f"{video.stem}-{seen[video.stem]}"
    return names


def _predict_video(
    config: dict[str, Any], module: Any, run: str, video: Path, folder: Path, stride_s: float, overlay: bool,
    marks: Mapping[str, float],
) -> None:  # fmt: skip
    """Score one video and write what a person looks at."""
    import pandas as pd
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from dashvlm.engine.load import build_store
    from dashvlm.engine.over_time import draw_overlay, playable, risk_over_time, warnings_of
    from dashvlm.report.risk_page import write_risk_page
    from dashvlm.tasks.binary.plots import plot_risk

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total} anchors")
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task(video.name, total=None)
        rows = risk_over_time(
            config, module, video, stride_s, lambda done, of: bar.update(shown, completed=done, total=of)
        )
    folder.mkdir(parents=True, exist_ok=True)
    store, table, warnings = build_store(config), pd.DataFrame(rows), warnings_of(config, rows)
    index = store.index(video)
    late = {k: v for k, v in marks.items() if v > index.duration_s}
    warnings += [
        f"{k} at {v:g} s: the video ends at {index.duration_s:g} s, so it is not drawn" for k, v in late.items()
    ]
    marks = {k: v for k, v in marks.items() if k not in late}
    (folder / "risk.mp4").unlink(missing_ok=True)  # of an earlier call, with other marks perhaps
    cells(table).to_csv(folder / "risk.csv", index=False)
    plot_risk(rows, folder / "risk.png", f"{video.name}, {run}", marks)
    trained = table[(table["note"] == "") & table["risk"].notna()]  # not where frames are repeated
    best = (trained if len(trained) else table).sort_values("risk", ascending=False).iloc[0]
    say(f"{video.name}: {len(table)} anchors, highest risk {best['risk']:.3f} at {best['time_s']:.2f} s")
    for warning in warnings:
        say(f"  ! {warning}")
    write_risk_page(
        folder / "risk.html", playable(video, store, folder), video.name, run, rows, marks, warnings,
        float(index.duration_s), index.height,
    )  # fmt: skip
    if overlay:
        draw_overlay(video, store, rows, folder / "risk.mp4", marks)
    say(f"written: {folder}/risk.html, risk.csv, risk.png" + (", risk.mp4" if overlay else ""))


def predict_inputs(
    source: Path,
    given: str,
    paths: Mapping[str, Any],
    folder: Path,
    stride_s: float = 0.2,
    tell: Callable[..., Any] = say,
) -> list[dict[str, Any]]:
    """Answer for each file or row of an input; typed again, it goes on where it stopped.

    Args:
        source: folder of a finished run.
        given: see :func:`dashvlm.data.formats.inputs.read_inputs`.
        paths: the ``paths`` group: ``cache_dir`` is used.
        folder: where ``predictions.jsonl`` and ``predictions.csv`` go.
        stride_s: seconds between the anchors of a risk.
        tell: what to do with a line about the progress.

    Returns:
        A mapping for each row, in order: ``id, file, status`` and, by task, ``risk`` (pairs of time and risk),
        ``answer`` with ``probabilities``, or ``fields`` and ``text``. What cannot be read has status ``failed`` and
        its ``problem``.

    Raises:
        DataError: if the input holds nothing, or no question for a task that needs one.
        ConfigError: if ``stride_s`` is not above 0.
    """
    import pandas as pd

    from dashvlm.data.datamodule import ClipDataModule
    from dashvlm.data.formats.inputs import read_inputs
    from dashvlm.data.manifest import build_manifest
    from dashvlm.data.samples import build_samples
    from dashvlm.engine.build import at_home, load_run, read_config
    from dashvlm.engine.fit import build_trainer
    from dashvlm.engine.load import build_store
    from dashvlm.engine.scoring import predict_rows
    from dashvlm.errors import ConfigError
    from dashvlm.safety.checksums import sha256
    from dashvlm.safety.files import read_json, write_json
    from dashvlm.tasks.base import make_task

    if isinstance(stride_s, bool) or not isinstance(stride_s, int | float) or not stride_s > 0:
        raise ConfigError("stride_s must be a number above 0", got=str(stride_s), do="use 0.2")
    root, rows = read_inputs(given)  # an error before the model is loaded
    config = at_home(source, read_config(source), paths)
    unasked = _without_question(make_task(config), rows)
    config, module = load_run(source, paths)
    options = {**config["data"], "reference": "clip_end", "negative_reference": "clip_end", "support_frames": "never"}
    folder.mkdir(parents=True, exist_ok=True)
    path, about = folder / "predictions.jsonl", folder / "about.json"
    now = {"weights": sha256(source / "trained.safetensors"), "stride_s": stride_s,
           "inputs": {str(row["clip_id"]): _content(root, row) for row in rows}}  # fmt: skip
    before = read_json(about) if about.is_file() and path.is_file() else {}
    done = _answered(path, before, now)
    write_json(about, now)
    store = build_store(config)
    manifest = build_manifest("input", rows, root, store, {"test": 1.0}, 0, max_bad_fraction=1.0, require_videos=False)
    samples = {s.clip.clip_id: s for s in build_samples(manifest.clips, {**options, "horizon_s": 0.0})[0]}
    problems = {q.clip_id: q.reason for q in manifest.quarantine}
    problems |= {i: str(s.clip.extra["failed"]) for i, s in samples.items() if "failed" in s.clip.extra}
    problems = unasked | problems
    names = {str(row["clip_id"]): row.get("video") for row in rows}
    waiting = [i for i in names if i not in done]
    tell(f"{len(names)} inputs, {len(names) - len(waiting)} answered before")
    loaders = ClipDataModule({}, store, module.collate, options, int(config["seed"]))
    quiet = {**config, "trainer": {**config["trainer"], "progress": False}}
    loaders.trainer = build_trainer(quiet, logger=False, enable_checkpointing=False)
    size, started = 4 * int(options["eval_batch_size"]), time.monotonic()
    if module.task.over_time:
        import torch

        module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        size = 1
    with path.open("w", encoding="utf-8") as file:
        for line in done.values():  # without a torn last line
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for first in range(0, len(waiting), size):
            part = waiting[first : first + size]
            good = [samples[i] for i in part if i in samples and i not in problems]
            if module.task.over_time:
                made = {s.clip.clip_id: _risk(config, module, s, stride_s) for s in good}
            else:
                answered = predict_rows(module, loaders, good) if good else []
                made = {s.clip.clip_id: _answer(module.task, s, r) for s, r in zip(good, answered, strict=True)}
            for i in part:
                answer = made.get(i) or {"status": "failed", "problem": problems.get(i, "its history is too short")}
                done[i] = {"id": i, "file": names[i], **answer}
                file.write(json.dumps(done[i], ensure_ascii=False) + "\n")
            file.flush()
            left = (time.monotonic() - started) / (first + len(part)) * (len(waiting) - first - len(part))
            tell(
                f"{len(names) - len(waiting) + first + len(part)} of {len(names)}, about {left:.0f} s left", error=True
            )
    found = [done[i] for i in names]
    cells(pd.DataFrame([line for row in found for line in _flat(row)])).to_csv(folder / "predictions.csv", index=False)
    states = Counter(row["status"] for row in found)
    tell(", ".join(f"{n} {state}" for state, n in states.most_common()))
    tell(f"written: {folder}/predictions.jsonl, predictions.csv")
    return found


def _content(root: Path, row: Mapping[str, Any]) -> str:
    """What decides an answer: the row, and the content of its file."""
    from dashvlm.safety.checksums import content_of

    asked = {k: v for k, v in row.items() if k in ("question", "choices", "problem")}
    return json.dumps([content_of(root / str(row.get("video") or ""))[2], asked], sort_keys=True, ensure_ascii=False)


def _answered(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Earlier answers that still hold; what failed is tried again."""
    from dashvlm.safety.files import read_lines

    known = before.get("inputs")
    if not isinstance(known, Mapping) or any(before.get(k) != now[k] for k in ("weights", "stride_s")):
        return {}
    lines = {str(line.get("id")): line for line in read_lines(path)}
    return {
        name: line
        for name, line in lines.items()
        if line.get("status") != "failed" and name in known and known[name] == now["inputs"].get(name)
    }


def _without_question(task: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Inputs that bring no question, for a task that has none of its own: name -> problem.

    Raises:
        DataError: if no input has a question.
    """
    from dashvlm.errors import ConfigError

    try:
        task.question or task.default_question()
        return {}
    except ConfigError:
        lacking = [str(row["clip_id"]) for row in rows if not row.get("question")]
    if len(lacking) == len(rows):
        raise DataError(
            f"task={task.name} needs a question for each input", got=f"{len(rows)} inputs without one",
            do="give a .csv, .json or .jsonl whose rows have video, question and choices",
        )  # fmt: skip
    return dict.fromkeys(lacking, "no question")


def _risk(config: dict[str, Any], module: Any, sample: Any, stride_s: float) -> dict[str, Any]:
    """Risk over time of one video, and its highest."""
    from dashvlm.engine.over_time import risk_over_time

    try:
        rows = risk_over_time(config, module, Path(sample.clip.path), stride_s)
    except DataError as error:
        return {"status": "failed", "problem": str(error).splitlines()[0]}
    rows = [row for row in rows if row["risk"] == row["risk"]]
    top = max(rows, key=lambda row: row["risk"])
    return {"status": "scored", "highest_risk": top["risk"], "at_s": top["time_s"],
            "risk": [[row["time_s"], row["risk"]] for row in rows]}  # fmt: skip


def _answer(task: Any, sample: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a model says of a sample, in the task's words."""
    if row.get("status") == "failed":
        return {"status": "failed", "problem": "the file cannot be decoded"}
    said: dict[str, Any] = {"status": row.get("status") or "scored"}
    if task.choices:
        probabilities = dict(zip(task.choices, row["scores"], strict=False))
        best = max(probabilities, key=lambda name: probabilities[name])
        texts = sample.clip.extra.get("choices") or ()
        number = task.choices.index(best)
        said |= {"answer": best, "probabilities": probabilities}
        said |= {"option": texts[number]} if number < len(texts) else {}
    else:
        answer = row.get("answer")
        said["fields"] = answer.get("fields", answer) if isinstance(answer, Mapping) else None
    return said | ({"text": row["text"]} if row.get("text") is not None else {})


def _flat(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row as lines of a table: one, or one for each anchor of a risk."""
    plain = {k: v for k, v in row.items() if k not in ("risk", "probabilities", "fields")}
    plain |= {f"p_{k}": v for k, v in (row.get("probabilities") or {}).items()}
    plain |= {k: v for k, v in (row.get("fields") or {}).items() if k != "text"}
    return [{**plain, "time_s": t, "risk": r} for t, r in row.get("risk") or ()] or [plain]


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start

        return start("predict", predict, sys.argv[1:])

    sys.exit(signals.run(main))
