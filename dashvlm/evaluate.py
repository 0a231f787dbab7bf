"""Score a finished run on other data, or a backbone as it is.

python -m dashvlm.evaluate run=runs/RUN data=nexar data.root=FOLDER
python -m dashvlm.evaluate model=smolvlm2 task=crash data=nexar        (zero-shot)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> None:
    """Write predictions and ``result.json`` into a folder of their own and print the table."""
    from dashvlm.build import build_module, load_run, prepare_data
    from dashvlm.cli import log_to_terminal
    from dashvlm.config import check, plain, refuse
    from dashvlm.data.load import build_store, load_manifest
    from dashvlm.data.manifest import fingerprint
    from dashvlm.identity import run_id
    from dashvlm.report.plots import plot_run
    from dashvlm.report.tables import detail_tables, print_table, result_table
    from dashvlm.run import quiet_libraries
    from dashvlm.scoring import score, write_json, write_results

    log_to_terminal()
    quiet_libraries()
    config = plain(cfg)
    source = config.pop("run")
    if source:
        trained, module = load_run(Path(source))
        config = _merged(trained, config)
    refuse(check(config))
    if not source:
        module = build_module(config, for_training=False)
        module.eval()
    config["data"]["fingerprint"] = fingerprint(load_manifest(config, build_store(config)))
    name = f"eval-{run_id(config)}" + (f"-of-{Path(source).name}" if source else "")
    folder = Path(config["paths"]["output_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    used = config["data"]
    origin = f"as {source} was trained" if source else "as configured"
    print(
        f"{used['num_frames']} frames {used['frame_interval_s']} s apart on {used['name']} ({used['root']}), {origin} "
        "unless the command line says otherwise"
    )
    data = prepare_data(config, train=False)
    rows = score(config, data, module)
    results = write_results(config, data, rows, folder, module)
    results["alarms"] += _seen_in_training(Path(source), rows) if source else []
    plot_run(rows, results, folder / "plots", data.store)
    write_json(folder / "result.json", results)
    for title, names, lines in detail_tables(results):
        print_table(title, names, lines)
    header, body = result_table(results)
    print_table(
        f"{name}: {results['counts']['test_clips']} {results['split']} clips in {results['counts']['groups']} groups",
        header,
        body,
        results["alarms"],
    )
    print(f"written: {folder}/")


def _seen_in_training(source: Path, rows: Any) -> list[str]:
    """Warn if a group that is scored was trained on."""
    path = source / "leakage.json"
    trained = set(json.loads(path.read_text(encoding="utf-8"))["training_groups"]) if path.exists() else set()
    shared = sorted(trained & set(rows["group"]))
    return [f"{len(shared)} of the scored groups have names that were trained on, first {shared[0]}"] if shared else []


def _merged(trained: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The run's own model and task; data and hardware as asked now.

    How frames are sampled belongs to what was trained, so it stays unless the command line says
    otherwise.
    """
    from hydra.core.hydra_config import HydraConfig

    from dashvlm.config import flatten

    said = [o.split("=")[0].lstrip("+~") for o in HydraConfig.get().overrides.task]
    data = dict(trained["data"])
    if "data" in said:
        kept = ["num_frames", "frame_interval_s", "horizon_s", "sampling", "sample_fps", "frame_size", "short_history"]
        kept += ["support_frames", "support_num_frames"]
        if asked["data"]["name"] == trained["data"]["name"]:  # the same split, or training clips end up in the test
            kept += ["splits", "split_by", "split_seed", "force_row_split", "reference", "negative_reference"]
            kept += ["eval_horizons_s", "sampling_seed", "pixels"]
        data = {**asked["data"], **{k: trained["data"][k] for k in kept}}
    for key in flatten(asked["data"]):
        if f"data.{key}" in said:
            data[key.split(".")[0]] = asked["data"][key.split(".")[0]]
    return {**trained, "data": data, "paths": asked["paths"], "trainer": asked["trainer"],
            "logger": asked["logger"], "sweep": asked["sweep"]}  # fmt: skip


if __name__ == "__main__":
    from dashvlm.cli import start

    sys.exit(start("evaluate", evaluate, sys.argv[1:]))
