"""Preference pairs from a run's own answers: the reference is better where the run is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError
from dashvlm.safety.plaintext import say


def write_pairs(config: dict[str, Any]) -> Path:
    """Let a run answer its training clips and write a pair for each answer that is not fully right.

    Args:
        config: of the label verb; the data are those that ``teacher.run`` was trained on, whatever ``data=`` says.

    Returns:
        The file with the pairs, ``pairs.jsonl``.

    Raises:
        ConfigError: if no answer was wrong.
    """
    from dashvlm.data.datamodule import ClipDataModule
    from dashvlm.engine.build import at_home, load_run, read_config
    from dashvlm.engine.fit import build_trainer
    from dashvlm.engine.prepare import prepare_data
    from dashvlm.engine.run import quiet_libraries
    from dashvlm.engine.scoring import predict_rows

    quiet_libraries()
    source = Path(config["teacher"]["run"])
    trained = at_home(source, {**read_config(source), "trainer": config["trainer"]}, config["paths"])
    _, module = load_run(source, config["paths"])
    module.options["generate"] = True
    data = prepare_data(trained)
    samples, task = data.samples["train"], module.task
    loaders = ClipDataModule({}, data.store, module.collate, trained["data"], int(trained["seed"]))
    loaders.trainer = build_trainer(trained, logger=False, enable_checkpointing=False)
    pairs, right, longer = [], 0, 0
    for row in predict_rows(module, loaders, samples):
        sample, text = samples[row["index"]], row.get("text")
        if not isinstance(text, str):
            continue
        target, better = task.target(sample), task.answer(sample)
        if (row["status"] == "parsed" and task.partial_credit(row["answer"], target) == 1.0) or text == better:
            right += 1
            continue
        pairs.append({"clip_id": sample.clip.clip_id, "chosen": better, "rejected": text})
        longer += len(better) > len(text)
    if not pairs:
        raise ConfigError(
            f"{source} answers all {right} training clips right: there is nothing to prefer",
            do="use a run that was trained for fewer steps",
        )
    folder = Path(config["output"] or Path(config["paths"]["output_dir"]) / f"pairs-of-{source.name}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs), encoding="utf-8")
    say(f"{len(pairs)} pairs, {right} answers were right and make none; the better text is the longer one in "
          f"{longer / len(pairs):.0%}\nwritten: {path}")  # fmt: skip
    return path
