"""A W&B workspace for a study: the same sections for everybody, made by code (extra: dashboards)."""

from __future__ import annotations

from typing import Any

from dashvlm.errors import ConfigError
from dashvlm.reproductions.studies import Study
from dashvlm.tasks.evaluation import evaluations


def workspace(study: Study, entity: str, project: str) -> Any:
    """Describe the workspace of a study; nothing is sent before its ``save``.

    Args:
        study: names the metrics; its runs are those in the W&B group of its name.
        entity: W&B entity.
        project: W&B project.

    Raises:
        ConfigError: if wandb-workspaces is not installed, or no entity is named.
    """
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as wr
    except ModuleNotFoundError as error:
        raise ConfigError("workspaces are not installed", do="pip install 'dashvlm[dashboards]'") from error
    if not entity:
        raise ConfigError("a workspace needs an entity", do="add entity=NAME project=NAME")
    first = [m for m in study.metrics if m in {kind.primary for kind in evaluations().values()}] or study.metrics[:1]
    results = [wr.BarPlot(title=f"test {m}", metrics=[f"test/{m}"]) for m in study.metrics]
    context = [
        wr.ScalarChart(title=f"{b} {first[0]}", metric=f"baseline/{b}_{first[0]}") for b in ("majority", "pixels_off")
    ]
    curves = [
        wr.LinePlot(title="loss", y=["train/loss", "val/loss"]),
        wr.LinePlot(title="validation", metric_regex="val/.*"),
        wr.LinePlot(title="rewards", metric_regex="train/reward.*"),
    ]
    samples = [wr.MediaBrowser(title="plots", media_keys=["plots/roc", "plots/worst_errors", "plots/curves"]),
               wr.WeavePanelSummaryTable(table_name="predictions")]  # fmt: skip
    sections = [
        ws.Section(name="Results on the test split", panels=results, is_open=True),
        ws.Section(name="What it must beat", panels=context, is_open=True),
        ws.Section(name="Curves", panels=curves),
        ws.Section(name="Samples", panels=samples),
    ]
    return ws.Workspace(
        entity=entity, project=project, name=str(study.spec["title"]), sections=sections,
        runset_settings=ws.RunsetSettings(filters=[ws.Tags().isin([f"study:{study.owner}/full"])]),
    )  # fmt: skip


def save_workspace(study: Study, entity: str, project: str) -> str:
    """Send the workspace of a study to W&B and return its address."""
    made = workspace(study, entity, project)
    try:
        made.save()
    except Exception as error:  # wandb's own errors: no key, no network, no permission
        raise ConfigError(
            f"the workspace cannot be written to {entity}/{project}", got=str(error).strip().splitlines()[0],
            do="run `wandb login`, and check that you may write to that project",
        ) from error  # fmt: skip
    return str(made.url)
