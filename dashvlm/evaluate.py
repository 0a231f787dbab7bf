"""Score a finished run on other data, or a backbone as it is.

python -m dashvlm.evaluate run=runs/RUN data=nexar data.root=FOLDER
python -m dashvlm.evaluate model=smolvlm2 task=crash data=nexar        (zero-shot)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dashvlm.errors import DataError
from dashvlm.safety.files import read_json, read_yaml
from dashvlm.safety.plaintext import say


def evaluate(cfg: DictConfig) -> None:
    """Write predictions and ``result.json`` into a folder of their own and print the table."""
    from hydra.core.hydra_config import HydraConfig

    from dashvlm.config.cli import log_to_terminal
    from dashvlm.config.overrides import plain
    from dashvlm.report.tables import detail_tables, print_table, result_table, result_title

    log_to_terminal()
    said = [o.split("=")[0].lstrip("+~") for o in HydraConfig.get().overrides.task]
    for folder, results in measure(plain(cfg), said, say):
        for title, names, lines in detail_tables(results):
            print_table(title, names, lines)
        header, body = result_table(results)
        print_table(result_title(folder.name, results), header, body, results["alarms"])
        say(f"written: {folder}/")


def measure(
    config: dict[str, Any], said: list[str], tell: Callable[[str], Any] = lambda text: None
) -> list[tuple[Path, dict[str, Any]]]:
    """Score a run, or a backbone as it is.

    Args:
        config: composed from ``evaluate.yaml``; ``run`` names the run.
        said: keys that the user gave; everything else is as the run was trained.
        tell: what to do with a line about the data.

    Returns:
        For each split the folder that was written, and its ``result.json``.
    """
    from dashvlm.backbones.twin_files import model_fingerprint
    from dashvlm.config.overrides import refuse
    from dashvlm.data.manifest import fingerprint
    from dashvlm.engine.build import at_home, build_module, checkpoint_file, load_run, read_config
    from dashvlm.engine.load import build_store, load_manifest
    from dashvlm.engine.run import quiet_libraries
    from dashvlm.errors import ConfigError
    from dashvlm.tasks.check import check

    quiet_libraries()
    source, checkpoint, splits = config.pop("run"), config.pop("checkpoint"), config.pop("splits")
    stream = config.pop("stream", None)
    if stream is not None:
        config["task"]["stream"], said = stream, [*said, "task.stream"]
    if checkpoint and not source:
        raise ConfigError(f"checkpoint={checkpoint}: of which run?", do="name it: run=runs/RUN")
    refuse(check({"splits": splits, "checkpoint": checkpoint}))
    asked: dict[str, Any] = {}
    if source:
        trained = at_home(Path(source), read_config(Path(source)), config["paths"])
        if trained["task"].get("reasoning") == "auto":  # the run's own answer, whatever became of its label file
            trained["task"]["reasoning"] = bool(trained["data"].get("labels"))
        trained["data"] |= {"labels": None, "pairs": None}
        asked = dict(trained["task"])
        config = _merged(trained, config, said)
    refuse(check(config))
    # Wrong data is an error before the model is loaded.
    config["data"]["fingerprint"] = fingerprint(load_manifest(config, build_store(config)))
    config["model"] |= model_fingerprint(config["model"])
    if checkpoint:
        config["checkpoint"] = checkpoint_file(Path(source), checkpoint).stem
    module = (
        load_run(Path(source), config["paths"], config, checkpoint)[1]
        if source
        else build_module(config, for_training=False)
    )
    module.eval()
    wanted = list(dict.fromkeys(splits or [])) or [None]
    foreign = [k for k in ("prompt", "prompt_file", "question") if source and config["task"].get(k) != asked.get(k)]
    notes = [f"task.{k} is not the one that the run was trained with" for k in foreign]
    return [_measure(config | ({"splits": [s]} if s else {}), source, module, s, tell, notes) for s in wanted]


def _measure(
    config: dict[str, Any], source: str | None, module: Any, split: Any, tell: Callable[[str], Any], notes: list[str]
) -> tuple[Path, dict[str, Any]]:
    """Score one split into a folder of its own."""
    from dashvlm.config.identity import run_id
    from dashvlm.engine.fit import build_trainer
    from dashvlm.engine.prepare import prepare_data
    from dashvlm.engine.results import plot_run, write_results
    from dashvlm.engine.scoring import score
    from dashvlm.engine.streams import score_stream
    from dashvlm.safety import checksums
    from dashvlm.safety.files import write_json, write_yaml

    name = f"eval-{run_id(config)}" + (f"-of-{Path(source).name}" if source else "")
    folder = Path(config["paths"]["output_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", config)
    used = config["data"]
    origin = f"as {source} was trained" if source else "as configured"
    weights = f", weights of {config['checkpoint']}" if config.get("checkpoint") else ""
    tell(
        f"{used['num_frames']} frames, {_sampling(used)}, on {used['name']} ({used['root']}), {origin} "
        f"unless the command line says otherwise{weights}"
    )
    data = prepare_data(config, train=False, split=split)
    trainer = build_trainer(config, logger=False, enable_checkpointing=False)
    rows = score(config, data, module, trainer)
    stream = score_stream(config, data, module, trainer) if config["task"].get("stream") else None
    results = write_results(config, data, rows, folder, module, stream)
    results["alarms"] += [*notes, *(_seen_in_training(Path(source), rows) if source else [])]
    plot_run(module.task.evaluation, rows, results, folder / "plots", data.store, stream)
    write_json(folder / "result.json", results)
    checksums.note(folder, checksums.SMALL)
    return folder, results


def with_task(argv: list[str]) -> list[str]:
    """Add the task of the run that is scored, so that the data is set up for it."""
    named = [a.split("=", 1)[1] for a in argv if a.startswith("run=")]
    path = Path(named[-1]) / "config.yaml" if named else None
    if path is None or not path.is_file() or any(a.startswith("task=") for a in argv):
        return argv
    try:
        task = str(read_yaml(path)["task"]["name"])
    except (DataError, LookupError, TypeError):
        return argv  # reading the run will say what is wrong
    return [*argv, f"task={task}"]


def _sampling(data: dict[str, Any]) -> str:
    apart = {"anchored": f"{data['frame_interval_s']} s apart", "fps": f"{data['sample_fps']} a second"}
    return apart.get(data["sampling"], f"sampling={data['sampling']}")


def _seen_in_training(source: Path, rows: Any) -> list[str]:
    """Warn if a group that is scored was trained on."""
    path = source / "leakage.json"
    trained = set(map(str, read_json(path).get("training_groups") or ())) if path.exists() else set()
    shared = sorted(trained & set(rows["group"]))
    return [f"{len(shared)} of the scored groups have names that were trained on, first {shared[0]}"] if shared else []


def _merged(trained: dict[str, Any], asked: dict[str, Any], said: list[str]) -> dict[str, Any]:
    """The run's own model and task; data and hardware as asked now.

    How frames are sampled belongs to what was trained, so it stays unless the command line says
    otherwise.
    """
    from dashvlm.config.rules import flatten

    changed = _words_of_the_run(trained, asked, said)
    data = dict(trained["data"])
    if "data" in said:
        kept = ["num_frames", "frame_interval_s", "horizon_s", "sampling", "sample_fps", "frame_size", "short_history"]
        kept += ["support_frames", "support_num_frames", "shots", "anchors", "stream"]
        if asked["data"]["name"] == trained["data"]["name"]:  # the same split, or training clips end up in the test
            kept += ["splits", "split_by", "split_seed", "force_row_split", "reference", "negative_reference"]
            kept += ["eval_horizons_s", "sampling_seed", "pixels"]
        data = {**asked["data"], **{k: trained["data"][k] for k in kept}}
    if asked["data"]["name"] == trained["data"]["name"]:
        data["options"] = {**asked["data"]["options"], **trained["data"]["options"]}
        data["root"] = trained["data"]["root"]
    data |= {k: v for k, v in asked["data"].items() if k in ("store_gb", "decode_timeout_s", "decode_memory_gb")}
    for key, value in flatten(asked["data"]).items():
        top, _, rest = key.partition(".")
        if f"data.{key}" in said and rest:
            data[top] = {**data[top], rest: value}
        elif f"data.{key}" in said or f"data.{top}" in said:
            data[top] = asked["data"][top]
    trainer = dict(asked["trainer"])
    if "trainer.precision" not in said:  # what was trained in 16 bit is scored in 16 bit
        trainer["precision"] = trained["trainer"]["precision"]
    return {**trained, **changed, "data": data, "paths": asked["paths"], "trainer": trainer,
            "logger": asked["logger"], "sweep": asked["sweep"],
            "verbose": asked.get("verbose", False), "csv": asked.get("csv", False)}  # fmt: skip


FREE = (
    "run", "checkpoint", "splits", "stream", "verbose", "csv", "data", "paths", "trainer", "logger", "hydra", "seed",
    "task", "sweep", "local", "debug",
)  # fmt: skip
"""Top-level words of a command line that act on an evaluation of a run."""
GENERATION = ("objective.generate", "objective.constrained", "objective.max_new_tokens", "objective.generation")
"""Those of the objective that do: how texts are written, not what was learned."""


def _words_of_the_run(trained: dict[str, Any], asked: dict[str, Any], said: list[str]) -> dict[str, Any]:
    """The run's own groups with the words that may change them.

    Raises:
        ConfigError: for words that would change what was trained; nothing is ignored.
    """
    from dashvlm.config.rules import flatten
    from dashvlm.errors import ConfigError

    refused = [
        key
        for key in said
        if key.split(".")[0].split("/")[0].split("@")[0] not in FREE and not key.startswith(GENERATION)
    ]
    if "task" in said and asked["task"]["name"] != trained["task"]["name"]:
        refused.append(f"task={asked['task']['name']}")
    if refused:
        raise ConfigError(
            f"{', '.join(dict.fromkeys(refused))}: belongs to what was trained",
            got=f"a run of task={trained['task']['name']}, model={trained['model']['name']}",
            do="leave it out; train another run with it, or evaluate a backbone as it is (without run=)",
        )  # fmt: skip
    changed: dict[str, Any] = {"seed": asked["seed"]} if "seed" in said else {}
    said = [word for word in said if "." in word]  # task=NAME only says again which task it is
    for group in ("task", "objective"):
        node = dict(trained[group])
        for key, value in flatten(asked[group]).items():
            if any(f"{group}.{key}" == word or f"{group}.{key}".startswith(f"{word}.") for word in said):
                top, _, rest = key.partition(".")
                node[top] = {**(node.get(top) or {}), rest: value} if rest else value
        changed[group] = node
    return changed


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start

        return start("evaluate", evaluate, with_task(sys.argv[1:]))

    sys.exit(signals.run(main))
