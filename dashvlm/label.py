"""Let a teacher write rationales or annotations for a dataset, or our own runs the worse half of preference pairs.

python -m dashvlm.label teacher=openai data=nexar data.root=FOLDER label_in_prompt=both dry_run=true
python -m dashvlm.label teacher=own teacher.run=runs/RUN     (pairs for objective=dpo, of the clips it was trained on)
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def label(cfg: DictConfig) -> None:
    """Dispatch on the kind of teacher."""
    from dashvlm.config.cli import log_to_terminal
    from dashvlm.config.overrides import plain, refuse
    from dashvlm.tasks.check import check

    log_to_terminal()
    config = plain(cfg)
    refuse(check(config))
    if config["teacher"]["name"] == "own":
        from dashvlm.engine.own_mistakes import write_pairs

        write_pairs(config)
        return
    ask_teacher(config)


def ask_teacher(config: dict[str, Any]) -> None:
    """Ask about every clip in every mode, append the answers, and report."""
    import fcntl

    from dashvlm.data.clip import SPLITS
    from dashvlm.data.manifest import limited
    from dashvlm.data.samples import build_samples
    from dashvlm.endpoint.client import Teacher
    from dashvlm.engine.load import build_store, load_manifest
    from dashvlm.errors import ConfigError, DataError, TeacherError
    from dashvlm.labels.ask import LabelWriter, Progress, label_template, modes_of, requests_for, to_label
    from dashvlm.tasks.base import make_task, task_class

    options = {**config["data"], "labels": None, "short_history": "pad_oldest"}  # as many frames for every clip
    rationales = task_class(config).labelled == "rationale"
    reasons = {"reasoning": True} if rationales else {}
    task, teacher_options = make_task({**config, "task": {**config["task"], **reasons}}), config["teacher"]
    store = build_store(config)
    manifest = load_manifest({**config, "data": options}, store)
    if options["limit"]:
        manifest = limited(manifest, int(options["limit"]))
    samples = [
        s for split in SPLITS if split in config["splits"] for s in build_samples(manifest.split(split), options)[0]
    ]
    if not samples:
        raise DataError(f"no clip to ask about in {', '.join(config['splits'])}", do="name other splits or data")
    folder = Path(config["output"] or _folder(config))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TeacherError(
                f"{folder} is being labelled by another process", do="wait for it, or stop it"
            ) from error
        writer = LabelWriter(folder / "labels.jsonl")
        cache, ledger = Path(config["paths"]["cache_dir"]) / "teacher", folder / "spent.jsonl"
        teacher = Teacher(teacher_options, cache, ledger, needs_key=not config["dry_run"])
        modes = modes_of(config["label_in_prompt"], task)
        if not rationales and config["label_prompt"] != "five_factors":
            raise ConfigError(
                f"label_prompt={config['label_prompt']}: task={task.name} asks in its own words",
                do="leave it out; task.prompt_file changes them",
            )
        system = label_template(config["label_prompt"], "told" in modes)
        asks, problems = requests_for(samples, modes, task, store, teacher, system)
        waiting = [a for a in asks if not writer.has(a)]
        size = tuple(options["frame_size"] or (720, 1280))
        unpaid = [a for a in waiting if not teacher.known(a.request)]
        most = sum(teacher.estimate(a.request, (int(size[0]), int(size[1]))) for a in unpaid)
        print(
            f"{len(asks)} answers wanted of {teacher_options['model']} ({len(samples)} clips), "
            f"{len(asks) - len(waiting)} in the file, {len(waiting) - len(unpaid)} in the cache; the {len(unpaid)} "
            f"others cost at most ${most:.4f} (cap ${teacher_options['cap_usd']:g}, "
            f"spent ${teacher.tally.spent_usd:.4f})"
        )
        if str(teacher_options["model"]) != teacher_options["priced_for"]:
            print(
                f"  ! these are the prices of {teacher_options['priced_for']}; set teacher.usd_per_million_in and _out "
                f"(0 for a server of your own) and teacher.priced_for={teacher_options['model']}"
            )
        left = float(teacher_options["cap_usd"]) - teacher.tally.spent_usd
        if most > left:
            paid = int(len(unpaid) * max(left, 0.0) / most)
            print(
                f"  ! that is above the cap: at worst the money ends after {paid} of {len(unpaid)} answers; "
                f"teacher.cap_usd={teacher.tally.spent_usd + most:.2f} would do for all"
            )
        if config["dry_run"]:
            return
        progress = Progress(len(waiting), float(teacher_options["cap_usd"]))

        def keep(number: int, reply: Any) -> None:
            made = to_label(waiting[number], reply, task, str(teacher_options["model"]), str(config["label_prompt"]))
            writer.add(made)
            progress.step(made, teacher)

        try:
            teacher.ask([a.request for a in waiting], (int(size[0]), int(size[1])), keep)
        finally:
            progress.end()
            missing = [a for a in waiting if not writer.has(a)]
            wanted = {(a.sample.clip.clip_id, a.mode) for a in asks}
            labels = [x for k, x in writer.labels.items() if k in wanted]
            groups = {c.clip_id: c.group for c in manifest.clips}
            _report(folder, labels, groups, problems, len(missing), teacher, rationales)
    if missing:
        why = "the cap is reached" if teacher.tally.capped else "; ".join(teacher.tally.failures) or "interrupted"
        raise TeacherError(
            f"{len(missing)} answers are missing", got=why,
            do="raise teacher.cap_usd, or run the same command again: nothing that was paid for is asked again",
        )  # fmt: skip


def _report(
    folder: Path, labels: list[Any], groups: dict[str, str], problems: dict[str, str], missing: int, teacher: Any,
    rationales: bool,
) -> None:  # fmt: skip
    """Print and write what came back, how far it agrees, and what gives the class away."""
    from dashvlm.labels.ask import agreement
    from dashvlm.labels.label_file import STATUSES
    from dashvlm.report.tables import print_rows
    from dashvlm.shortcuts.leaks import leak_rows

    tally, modes = teacher.tally, sorted({x.mode for x in labels}, reverse=True)
    rows = []
    for mode in modes:
        mine = [x for x in labels if x.mode == mode]
        rows.append({"mode": mode, "answers": len(mine), **{s: sum(x.status == s for x in mine) for s in STATUSES},
                     "frames": ", ".join(sorted({str(x.num_frames) for x in mine})),
                     "USD": round(sum(x.cost_usd for x in mine), 6)})  # fmt: skip
    print_rows("labels", rows)
    agree = agreement(labels, groups)
    print_rows("agreement", agree)
    leaks = [row for mode in modes for row in leak_rows([x for x in labels if x.mode == mode], mode)] \
        if rationales else []  # fmt: skip
    print_rows("what gives the class away besides evidence", leaks)
    for name, why in list(problems.items())[:10]:
        print(f"  not asked about: {name}: {why}")
    print(
        f"  paid calls {tally.paid}, from the cache {tally.cached}, found again after an interruption "
        f"{tally.recovered}, asked again though perhaps paid for {tally.asked_again}, retries {tally.retries}, "
        f"spent in this file ${tally.spent_usd:.4f}"
    )
    for why, count in tally.failures.items():
        print(f"  {count} gave no answer: {why}")
    report = {"labels": rows, "agreement": agree, "leaks": leaks, "problems": problems, "missing": missing,
              "tally": vars(tally)}  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {folder}/labels.jsonl, report.json")


def _folder(config: dict[str, Any]) -> Path:
    """Name the output by what decides the answers, but for modes, splits and money."""
    data = {k: v for k, v in config["data"].items() if k not in ("batch_size", "eval_batch_size", "num_workers")}
    teacher = {k: config["teacher"][k] for k in ("model", "base_url", "max_tokens", "temperature", "detail")}
    decides = [data, teacher, config["task"]]
    if config["label_prompt"] != "five_factors":
        from dashvlm.labels.ask import label_template

        decides.append(label_template(config["label_prompt"]))
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    name = f"labels-{config['data']['name']}-{config['teacher']['model']}-{digest.hexdigest()[:8]}"
    return Path(config["paths"]["output_dir"]) / name.replace("/", "_")


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start
        from dashvlm.config.overrides import with_task

        return start("label", label, with_task(sys.argv[1:]))

    sys.exit(signals.run(main))
