"""Where numbers go: CSV always, W&B and TensorBoard on request. The only wandb import of training."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger

from dashvlm.config.identity import RUN_FILES, WANDB_FOLDER
from dashvlm.errors import ConfigError
from dashvlm.safety.files import read_json, read_yaml
from dashvlm.safety.redaction import redact


def build_loggers(cfg: Mapping[str, Any], run_id: str, folder: Path) -> list[Logger]:
    """Build the loggers of a run.

    Args:
        cfg: the whole resolved configuration; ``logger.name`` is csv, wandb or tensorboard.
        run_id: also the W&B run's id, so that a resumed run continues its curves.
        folder: the run's folder.
    """
    options = cfg["logger"]
    _keep_earlier(folder / "metrics" / "metrics.csv")
    loggers: list[Logger] = [CSVLogger(folder, name="", version="metrics")]
    if options["name"] == "wandb":
        loggers.append(_wandb(cfg, run_id, folder))
    elif options["name"] == "tensorboard":
        try:
            from pytorch_lightning.loggers import TensorBoardLogger

            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
        except ModuleNotFoundError as error:
            raise ConfigError("logger=tensorboard is not installed", do="pip install 'dashvlm[tensorboard]'") from error
    return loggers


def finish(
    loggers: list[Logger],
    results: Mapping[str, Any] | None,
    rows: pd.DataFrame | None,
    images: Mapping[str, Path],
    folder: Path,
    samples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Send the final numbers, predictions and plots, and end the W&B run with the right state.

    Args:
        loggers: of the run.
        results: the content of ``result.json``; None if the run failed.
        rows: predictions.
        images: name -> PNG file.
        folder: of the run; what tables are made from goes to W&B as files too.
        samples: the worst and the best, with their filmstrips (:func:`dashvlm.report.html.gallery`).
    """
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            run = logger.experiment  # type: ignore[attr-defined]
            if results is not None:
                run.summary.update(
                    {f"test/{k}": v["value"] for k, v in results["metrics"].items()}
                    | {f"baseline/{k}": v["value"] for k, v in results["baselines"].items()}
                )
                run.summary["alarms"] = results["alarms"]
                if Path(run.dir).is_dir():  # mode=disabled names a folder that is not there
                    for path in _keep_files(folder, Path(run.dir) / WANDB_FOLDER):
                        run.save(str(path), base_path=run.dir, policy="now")  # so that `wandb sync` knows it too
                for name, path in images.items():
                    run.log({f"plots/{name}": wandb.Image(str(path))})
                if samples:
                    columns = ["clip", "kind", "score", "target", "text", "prompt"]
                    table = wandb.Table(columns=["frames", *columns])
                    for sample in samples:
                        strip = Image.open(io.BytesIO(base64.b64decode(sample["strip"]))) if sample["strip"] else None
                        table.add_data(wandb.Image(strip) if strip else None, *[sample[c] for c in columns])
                    run.log({"samples": table})
                if rows is not None:
                    shown = rows.drop(columns=[c for c in rows if c.endswith("times_s")])
                    for name in [c for c in shown if c.endswith(("scores", "choices"))]:
                        shown[name] = shown[name].map(str)  # W&B wants one type a cell
                    run.log({"predictions": wandb.Table(dataframe=shown.astype(object).where(shown.notna(), None))})
            wandb.finish(exit_code=0 if results is not None else 1)
        elif results is not None:
            logger.log_metrics({f"test/{k}": v["value"] for k, v in results["metrics"].items()})
        logger.finalize("success" if results is not None else "failed")


def _keep_files(folder: Path, target: Path) -> list[Path]:
    """Put what tables are made from among the files of a W&B run."""
    kept = []
    for name in RUN_FILES:
        if not (folder / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".yaml", ".json")):
            known = redact((read_json if name.endswith(".json") else read_yaml)(folder / name))
            text = json.dumps(known, indent=2) if name.endswith(".json") else yaml.safe_dump(known, sort_keys=False)
            (target / name).write_text(text + "\n", encoding="utf-8")
        else:
            shutil.copyfile(folder / name, target / name)
        kept.append(target / name)
    return kept


def _keep_earlier(path: Path) -> None:
    """Move the curves of an interrupted run aside: the CSV logger would delete them."""
    if path.exists():
        number = len(list(path.parent.glob("metrics.before*.csv"))) + 1
        path.rename(path.with_name(f"metrics.before{number}.csv"))


def _wandb(cfg: Mapping[str, Any], run_id: str, folder: Path) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    options = cfg["logger"]
    return WandbLogger(
        project=options["project"],
        entity=options.get("entity"),
        id=run_id,
        name=run_id,
        save_dir=folder,
        group=options.get("group") or str(cfg.get("study") or "").split("/")[0] or (cfg.get("sweep") or {}).get("id"),
        job_type="train",
        tags=[
            cfg["model"]["name"],
            cfg["task"]["name"],
            cfg["data"]["name"],
            *([f"study:{cfg['study']}"] if cfg.get("study") else []),
            *options.get("tags", []),
        ],
        mode=options["mode"],
        resume="allow",
        config=redact(cfg),
    )
