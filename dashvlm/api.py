"""The verbs as functions, for notebooks and scripts: quiet, with Python values in and out.

from dashvlm import api

run = api.train(api.compose("experiment=crash_demo", "data.num_frames=4"))
print(run.metrics["roc_auc"])
run.predict("clip.mp4")
api.evaluate(run, "data=nexar", "data.root=FOLDER")
api.read_sweep("runs")
"""

from __future__ import annotations

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

    def predict(self, given: str | Path, stride_s: float = 0.2, output: Path | None = None) -> list[dict[str, Any]]:
        """Answer about new videos, pictures or questions.

        Args:
            given: a file, a folder, a pattern, or a table with one file per row.
            stride_s: seconds between the moments of a video that are scored.
            output: folder for ``predictions.jsonl`` and ``predictions.csv``; by default beside the run.

        Returns:
            One mapping per input: ``id, file, status`` and the answer; see :func:`dashvlm.predict.predict_inputs`.

        Raises:
            DataError: if there is nothing to predict.
        """
        from dashvlm.engine.run import quiet_libraries
        from dashvlm.predict import predict_inputs

        quiet_libraries()
        folder = output or self.folder.parent / f"predict-{self.folder.name}-{Path(given).stem}"
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

    Raises:
        ConfigError: with all errors at once.
    """
    from dashvlm.config.cli import compose_train, composing
    from dashvlm.config.overrides import check_overrides, check_secrets, check_words, refuse, with_quotes
    from dashvlm.tasks.check import check

    quoted = with_quotes(words)
    check_secrets(quoted)
    check_words(quoted)
    with composing():
        check_overrides("train", quoted)
        config = compose_train(quoted)
    refuse(check(config))
    return config | {"sweep": {"id": None, "grid": [], "overrides": list(words)}}


def train(config: dict[str, Any], quiet: bool = True) -> Run:
    """Train and evaluate a configuration in a process of its own, unless that is done; a broken run is resumed.

    Args:
        config: from :func:`compose`.
        quiet: print nothing; the run's ``job.log`` has it all.

    Raises:
        TrainingError: if the run failed.
    """
    import copy

    from dashvlm.errors import TrainingError
    from dashvlm.report.collect import read_result
    from dashvlm.sweep import finish

    folder, code = finish(copy.deepcopy(config), quiet)
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

    status = run_status(Path(folder))
    if status != "done":
        raise DataError(f"{folder} holds no finished run", got=status, do="name a folder with a result.json")
    return Run(Path(folder))


def evaluate(run: Run | str | Path | None, *words: str) -> Run:
    """Score a run on other data, or a backbone as it is (``run=None``), from the words of an ``evaluate`` command line.

    Raises:
        ConfigError: for words that belong to what was trained.
    """
    from hydra import compose as hydra_compose

    from dashvlm.config.cli import composing
    from dashvlm.config.find import search_words
    from dashvlm.config.overrides import check_overrides, plain, with_quotes
    from dashvlm.evaluate import measure, with_task

    folder = run.folder if isinstance(run, Run) else run
    given = with_quotes([*words, *([f"run={folder}"] if folder else [])])
    quoted = with_task(given)
    with composing():
        check_overrides("evaluate", quoted)
        config = plain(hydra_compose("evaluate", overrides=[*quoted, *search_words()]))
    said = [word.split("=")[0].lstrip("+~") for word in quoted]
    return Run(measure(config, said)[0])


def read_sweep(folder: str | Path) -> pd.DataFrame:
    """A table of all runs below a folder: settings, metrics, baselines with their intervals, costs; one row per run.

    Raises:
        DataError: if there are none.
    """
    from dashvlm.errors import DataError
    from dashvlm.report.collect import collect

    folders = sorted(p.parent for p in Path(folder).glob("*/config.yaml"))
    if not folders:
        raise DataError(f"no runs in {folder}", do="train one first, or name another folder")
    return collect(folders)
