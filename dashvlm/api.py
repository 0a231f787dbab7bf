"""The verbs as functions, for notebooks and scripts: quiet, with Python values in and out.

from dashvlm import api

run = api.train(api.compose("experiment=crash_demo", "data.num_frames=4"))
print(run.metrics["roc_auc"])
run.predict("clip.mp4")
api.evaluate(run, "data=nexar", "data.root=FOLDER")
api.read_sweep("runs")
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from dashvlm.metrics.intervals import Estimate


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its files lie.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        from dashvlm.engine.build import read_config

        return read_config(self.folder)

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        from dashvlm.safety.files import read_json

        return read_json(self.folder / "result.json")

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Metrics with their 95 % intervals; nan where one is not defined."""
        return self._estimates("metrics")

    @property
    def baselines(self) -> dict[str, Estimate]:
        """What the metrics must be compared with."""
        return self._estimates("baselines")

    @property
    def alarms(self) -> list[str]:
        """Why a number might not measure what it seems to."""
        return list(self.result["alarms"])

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per sample; every metric can be computed from it."""
        from dashvlm.safety.files import read_table

        return read_table(self.folder / "predictions.parquet")

    def predict(
        self, given: str | Path, stride_s: float = 0.2, output: str | Path | None = None
    ) -> list[dict[str, Any]]:
        """Answer about new videos, pictures or questions.

        Args:
            given: a file, a folder, a pattern, or a table with one file per row; for multiple choice a table with
                ``video``, ``question`` and ``choices``.
            stride_s: seconds between the moments of a video that are scored.
            output: folder for ``predictions.jsonl`` and ``predictions.csv``; by default beside the run.

        Returns:
            One mapping per input: ``id, file, status`` and the answer; see :func:`dashvlm.predict.predict_inputs`.

        Answers that were given before and still hold are not computed again.

        Raises:
            DataError: if there is nothing to predict, or no question for a task that needs one.
            ConfigError: if ``stride_s`` is not above 0.
        """
        from dashvlm.config.overrides import private
        from dashvlm.engine.run import quiet_libraries
        from dashvlm.predict import predict_inputs

        quiet_libraries()
        name = re.sub(r"[^\w.-]+", "_", "-".join(_path(given).parts[-2:]))
        folder = self.folder.parent / f"predict-{self.folder.name}-{name}" if output is None else _path(output)
        with private(self.config):
            paths = self.config["paths"]
            return predict_inputs(self.folder, str(given), paths, folder, stride_s, lambda *text, **options: None)

    def _estimates(self, kind: str) -> dict[str, Estimate]:
        from dashvlm.metrics.intervals import Estimate

        undefined = float("nan")
        return {
            name: Estimate(*(undefined if v is None else float(v) for v in (node["value"], node["low"], node["high"])))
            for name, node in self.result[kind].items()
        }


def compose(*words: str) -> dict[str, Any]:
    """Compose and check a configuration from the words of a ``train`` command line.

    Args:
        words: one string per word, such as ``"data.num_frames=4"``. For own configuration files set DASHVLM_CONF.

    Raises:
        ConfigError: with all errors at once.
    """
    from dashvlm.config.overrides import check_secrets, check_words
    from dashvlm.errors import ConfigError
    from dashvlm.sweep import make_plan

    quoted = _words(words)
    check_secrets(quoted)
    check_words(quoted)
    plan = make_plan(quoted)
    if plan.axes:
        raise ConfigError(f"{', '.join(plan.axes)}: several values make a sweep", do="compose and train each value")
    return plan.base | {"sweep": {"id": None, "grid": [], "overrides": list(words)}}


def train(config: dict[str, Any], quiet: bool = True) -> Run:
    """Train and evaluate a configuration in a process of its own, unless that is done; a broken run is resumed.

    Args:
        config: from :func:`compose`; values may be changed, and are checked.
        quiet: print nothing; the run's ``job.log`` has it all.

    Raises:
        ConfigError: if the configuration cannot be used.
        TrainingError: if the run failed.
        KeyboardInterrupt: if it was stopped; training the same configuration again resumes it.
    """
    import copy

    from dashvlm import sweep
    from dashvlm.config.overrides import private, refuse
    from dashvlm.errors import ConfigError, TrainingError
    from dashvlm.report.collect import read_result
    from dashvlm.safety import signals
    from dashvlm.tasks.check import check

    if not isinstance(config, dict) or not {"model", "task", "data", "paths", "start_from"} <= set(config):
        raise ConfigError(
            "train needs a configuration", got=str(config)[:100], do='api.train(api.compose("word=value"))'
        )
    mine = copy.deepcopy(config)
    mine["paths"] = {k: str(v) if isinstance(v, Path) else v for k, v in mine["paths"].items()}
    refuse(check(mine))
    if mine["trainer"].get("data_only"):
        raise ConfigError("debug=data trains nothing", do="leave it out, or type `dashvlm train ... debug=data`")
    sweep.forget_manifests()  # the data may have changed since this process looked
    signals.forget()
    try:
        with private(mine):
            folder, code = sweep.finish(mine, quiet)
    except signals.Interrupted as stop:
        signals.forget()
        raise KeyboardInterrupt(str(stop)) from None
    if folder is None or code:
        why = read_result(folder).get("message") if folder else "the run that it starts from failed"
        raise TrainingError("the run failed", got=str(why), do=f"see {folder}/job.log")
    return Run(folder)


def load_run(folder: str | Path) -> Run:
    """Open a finished run.

    Raises:
        DataError: if there is none in the folder.
    """
    from dashvlm.errors import DataError
    from dashvlm.report.collect import run_status

    place = _path(folder)
    status = run_status(place)
    if status != "done":
        raise DataError(f"{place} holds no finished run", got=status, do="name a folder with a result.json")
    return Run(place)


def evaluate(run: Run | str | Path | None, *words: str) -> Run:
    """Score a run on other data, or a backbone as it is (``run=None``).

    Args:
        run: what is scored; the result is written beside it unless ``paths.output_dir`` says otherwise.
        words: of an ``evaluate`` command line.

    Returns:
        The evaluation; with several ``splits`` that of the first, the others lie beside it.

    Raises:
        ConfigError: for words that belong to what was trained.
    """
    from hydra import compose as hydra_compose

    from dashvlm.config.cli import composing
    from dashvlm.config.find import search_words
    from dashvlm.config.overrides import check_overrides, check_secrets, check_words, plain, private, with_quotes
    from dashvlm.errors import ConfigError
    from dashvlm.evaluate import measure, with_task

    given = _words(words)
    if any(word.startswith("run=") for word in given):
        raise ConfigError("run= is the first argument", do='api.evaluate("runs/RUN", "data=nexar")')
    if run is not None:
        scored = load_run(run.folder if isinstance(run, Run) else run)
        places = {"output_dir": scored.folder.parent, "cache_dir": scored.config["paths"]["cache_dir"]}
        lacking = [f"paths.{k}={v}" for k, v in places.items() if not any(w.startswith(f"paths.{k}=") for w in given)]
        given = [*given, *with_quotes([*lacking, f"run={scored.folder}"])]
    check_secrets(given)
    check_words(given)
    quoted = with_task(given)
    with composing():
        check_overrides("evaluate", quoted)
        config = plain(hydra_compose("evaluate", overrides=[*quoted, *search_words()]))
    said = [word.split("=")[0].lstrip("+~") for word in quoted]
    with private(config):
        return Run(measure(config, said)[0][0])


def read_sweep(folder: str | Path) -> pd.DataFrame:
    """A table of all runs below a folder: settings, metrics, baselines with their intervals, costs; one row per run.

    Raises:
        DataError: if there are none.
    """
    from dashvlm.errors import DataError
    from dashvlm.report.collect import collect

    place = _path(folder)
    folders = sorted(p.parent for p in place.glob("*/config.yaml"))
    if not folders:
        own = "this is a run's own folder: name its parent" if (place / "config.yaml").is_file() else ""
        raise DataError(f"no runs in {place}", do=own or "train one first, or name another folder")
    return collect(folders)


def _path(given: Any) -> Path:
    """A path.

    Raises:
        ConfigError: for anything else than a text or a path.
    """
    from dashvlm.errors import ConfigError

    if isinstance(given, Run):
        return given.folder
    if not isinstance(given, str | Path):
        raise ConfigError(
            "a path is needed", got=repr(given)[:100], do='use a text such as "runs/RUN", or a pathlib.Path'
        )
    return Path(given)


def _words(words: Iterable[Any]) -> list[str]:
    """Words of a command line, quoted for Hydra.

    Raises:
        ConfigError: for what is no word.
    """
    from dashvlm.config.overrides import with_quotes
    from dashvlm.errors import ConfigError

    for word in words:
        if not isinstance(word, str):
            raise ConfigError("not a word", got=repr(word)[:100], do='one text per word, such as "data.num_frames=4"')
        if word.startswith("-"):
            raise ConfigError(
                f"{word}: flags are of the command line", do="for own configuration files set DASHVLM_CONF"
            )
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: no value", do=f'write "key=value", such as "experiment={word}"')
        if re.search(r"\s[\w./]+=", word):
            raise ConfigError(f"{word}: several words in one text", do="one text per word")
    return with_quotes(list(words))
