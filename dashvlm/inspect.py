"""Look before training: a dataset's card and contact sheet, or a model's parts and targets.

python -m dashvlm.inspect data=nexar data.root=FOLDER
python -m dashvlm.inspect model=smolvlm2 model.checkpoint=tiny
python -m dashvlm.inspect data=jsonl data.root=FOLDER write_jsonl=true
python -m dashvlm.inspect data=nexar data.root=FOLDER audit=true
python -m dashvlm.inspect labels=labels.jsonl
python -m dashvlm.inspect data=bvpi data.root=FOLDER write_messages=FOLDER
python -m dashvlm.inspect data=bvpi data.root=FOLDER clip_scores_to=scores.csv
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dashvlm.safety.plaintext import say


def inspect(cfg: DictConfig) -> None:
    """Dispatch on what the command line names."""
    from hydra.core.hydra_config import HydraConfig

    from dashvlm.config.cli import log_to_terminal
    from dashvlm.config.overrides import plain, refuse
    from dashvlm.tasks.check import check

    log_to_terminal()
    said = HydraConfig.get().overrides.task
    config = plain(cfg)
    write, chats, scores = (config.pop(k) for k in ("write_jsonl", "write_messages", "clip_scores_to"))
    clip = config.pop("clip")
    refuse(check(config))
    if chats:
        from dashvlm.engine.chats import write_messages

        counts = write_messages(config, Path(chats))
        gone = counts.pop("unreadable")
        say("\n".join(f"{name}: {n} rows" for name, n in counts.items() if n))
        say(f"written: {chats}/" + (f"; {gone} clips cannot be read and are left out" if gone else ""))
        return
    if scores:
        from dashvlm.engine.similarities import write_similarities
        from dashvlm.metrics.clip import CHECKPOINT

        say(write_similarities(config["data"], Path(scores), clip or CHECKPOINT))
        return
    if write:
        from dashvlm.data.formats.jsonl import write_from_folders
        from dashvlm.tasks.crash import QUESTION

        if config["data"]["name"] == "bvpi":
            from dashvlm.data.formats.bvpi_build import write_rows

            target = Path(config["paths"]["output_dir"]) / "inspect-bvpi"
            made = write_rows(Path(config["data"]["root"]), target)
            say("\n".join(f"{name}: {n} rows" for name, n in made.items()) + f"\nwritten: {target}/")
            return
        counts = write_from_folders(Path(config["data"]["root"]), f"{QUESTION}(0: No, 1: Yes)")
        say("\n".join(f"{split}.jsonl: {n} clips" for split, n in counts.items()))
        return
    if config.pop("labels"):
        inspect_labels(Path(cfg.labels))
        return
    audited = bool(config.pop("audit"))
    asks_model = any(o.startswith(("model", "peft")) for o in said)
    if asks_model:
        inspect_model(config)
    if not asks_model or any(o.lstrip("+~").split("=")[0] in ("data", "data.root") for o in said):
        inspect_data(config, audited)


def inspect_labels(path: Path) -> None:
    """Print what a label file holds and what in it gives the class away."""
    from dashvlm.labels.label_file import STATUSES, read_labels
    from dashvlm.report.tables import print_rows
    from dashvlm.shortcuts.leaks import leak_rows

    file = read_labels(path)
    say(f"{path}: {len(file.labels)} labels" + "".join(f"; left out {n}: {why}" for why, n in file.dropped.items()))
    rows, leaks = [], []
    for mode in sorted({label.mode for label in file.labels}, reverse=True):
        mine = [label for label in file.labels if label.mode == mode]
        states = {status: sum(x.status == status for x in mine) for status in STATUSES}
        classes = {"yes": sum(x.label == 1 for x in mine), "no": sum(x.label == 0 for x in mine)}
        rows.append({"mode": mode, "labels": len(mine), **classes, **states})
        leaks += leak_rows(mine, mode)
    print_rows("labels", rows)
    if leaks:
        print_rows("what gives the class away besides evidence", leaks)
    else:
        say("  no rationales of both classes to probe")


def inspect_data(config: dict[str, Any], audited: bool = False) -> None:
    """Print the dataset card; write it as JSON with the contact sheet."""
    from dashvlm.data.samples import build_samples
    from dashvlm.engine.load import build_store, load_manifest
    from dashvlm.report.tables import print_rows, print_table
    from dashvlm.shortcuts.card import NONE, contact_sheet, dataset_card
    from dashvlm.tasks.base import make_task

    options = config["data"]
    lenient = {**options, "max_bad_fraction": 1.0}  # the card shows what is wrong, it does not refuse
    store = build_store(config)
    manifest = load_manifest({**config, "data": lenient}, store, require_videos=False)
    task = make_task(config)
    card = dataset_card(manifest, options, task)
    print_rows(f"{card['name']} in {options['root']}", card["splits"])
    for title, rows in card["tables"].items():
        print_rows(title, rows)
    for name, spread in card["numbers"].items():
        if spread:
            say(f"  {name:13s} " + ", ".join(f"{k} {v:g}" for k, v in spread.items()))
    if card["feasibility"]:
        say()
        print_rows(
            f"clips with enough history before the anchor (horizon {options['horizon_s']:g} s)",
            card["feasibility"],
        )
        point = card["feasibility"][0]
        short = point["clips"] - point["feasible"]
        if short:
            asked = f"data.num_frames={point['num_frames']} data.frame_interval_s={point['frame_interval_s']:g}"
            say(
                f"  ! {short} of {point['clips']} clips have less than the {point['needs_s']:g} s that {asked} need; "
                f"data.short_history={options['short_history']} decides what happens to them"
            )
    leak = card["leakage"]
    say(f"  groups in several splits: {len(leak['groups_in_several_splits'])}")
    if leak["row_split_would_share"] is not None:
        groups, videos = (_share(leak[k]) for k in ("row_split_would_share", "row_split_would_share_video"))
        say(f"  a split by row would put into training the group of {groups} of the test clips, "
            f"the very video of {videos}")  # fmt: skip
    shared = leak["files_in_several_splits"]
    if shared:
        say(f"  ! {len(shared)} files are in several splits: " + "; ".join(shared[:5]))
    if options["sampling"] == "anchored":
        say(f"  the anchor's time alone reaches ROC AUC {_estimate(card['anchor_auc'])} (0.5 tells nothing)")
    say(f"  files with the same content: {(card['duplicates'] or 'none') if card['videos'] else NONE}")
    if card["several_streams"]:
        say(f"  {card['several_streams']} files hold several video streams; the default, largest one is read")
    usable = [c for c in manifest.clips if "failed" not in c.extra]
    if not usable:
        say(f"  no video of the {len(manifest.clips)} rows is there; the first that is missing: "
              f"{manifest.clips[0].extra['failed']}")  # fmt: skip
    problems = [p for p in card["problems"] if usable or not p["reason"].startswith("scored as failed")]
    if problems:
        first = ", the first 30" if len(problems) > 30 else ""
        print_table(f"{len(problems)} rows with problems{first}", ["clip", "split", "reason"],
                    [[p["clip_id"], p["split"], p["reason"]] for p in problems[:30]])  # fmt: skip
    else:
        say("  other rows with problems: none")
    folder = Path(config["paths"]["output_dir"]) / f"inspect-{card['name']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    samples, _ = build_samples(usable, {**options, "short_history": "pad_oldest"})
    if samples:
        contact_sheet(samples, store, task, folder / "contact_sheet.png")
    say(f"written: {folder}/card.json{', contact_sheet.png' if samples else ''}")
    if audited:
        inspect_shortcuts(usable, options, task, store, folder)


def inspect_shortcuts(clips: list[Any], options: dict[str, Any], task: Any, store: Any, folder: Path) -> None:
    """Fit readers that see no pixels, look for near-duplicates, and fail by name.

    Raises:
        DataError: if a reader does better than chance, or pictures occur in two splits.
    """
    from dashvlm.data.clip import SPLITS
    from dashvlm.data.samples import build_samples
    from dashvlm.errors import DataError
    from dashvlm.report.tables import print_rows
    from dashvlm.shortcuts.audit import FEWEST, LEVEL, audit, near_duplicates

    lenient = {**options, "short_history": "pad_oldest"}
    samples: dict[str, Any] = {s: build_samples([c for c in clips if c.split == s], lenient)[0] for s in SPLITS}
    readers = audit(samples, task.kind_of, store)
    alike = near_duplicates(samples, store)
    rows = [{"reader": r.name, "reads": r.what, "ROC AUC on the test split": str(r.auc),
             "verdict": r.verdict} for r in readers]  # fmt: skip
    if rows:
        print_rows(f"readers that see no pixels (a clean dataset fails once in {1 / LEVEL:.0f})", rows)
    else:
        there = {s: sum(task.kind_of(x) is not None for x in samples[s]) for s in ("train", "test")}
        needed = f"it needs {FEWEST} labelled clips of two classes in each"
        say(
            f"  no audit: {there['train']} labelled clips in the training split, {there['test']} in the test split; "
            f"{needed}"
        )
    print_rows(
        "near-duplicates across splits",
        [{"clip": a, "looks like": b, "hash bits that differ": f"{share:.1%}"} for a, b, share in alike[:20]],
    ) if alike else say("  near-duplicates across splits: none")
    found = {"readers": rows, "near_duplicates": alike, "audited": bool(rows),
             "needs": f"{FEWEST} labelled clips of two classes in the training and in the test split"}  # fmt: skip
    (folder / "audit.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"written: {folder}/audit.json")
    failed = [r.name for r in readers if r.fails] + [f"{len(alike)} near-duplicates"] * bool(alike)
    if failed:
        raise DataError(
            "the shortcut audit fails", got=", ".join(failed),
            do="take what these readers read out of the data (names, sizes, times), or split so that it tells nothing",
        )  # fmt: skip


def inspect_model(config: dict[str, Any]) -> None:
    """Print what a model is made of, what it costs, what trains, and what adapters could target."""
    from collections import Counter
    from pathlib import Path

    from dashvlm.backbones import footprint as fp
    from dashvlm.backbones.adapters import check_targets
    from dashvlm.engine.run import quiet_libraries
    from dashvlm.errors import ConfigError
    from dashvlm.report.tables import print_rows

    quiet_libraries()
    data, peft, frames = config["data"], config["peft"], int(config["data"]["num_frames"])
    frame_size = tuple(data["frame_size"]) if data["frame_size"] else None
    size = fp.footprint(config["model"], Path(config["paths"]["cache_dir"]) / "twins", frame_size)
    title = f"{config['model']['name']}, checkpoint {config['model']['checkpoint']}, from {size.source}"
    rows = [
        {"part": r, "parameters": n, "16-bit GB": round(2 * n / 1e9, 3), "32-bit GB": round(4 * n / 1e9, 3)}
        for r, n in size.parameters.items()
    ]
    total = sum(size.parameters.values())
    last = ("total", total, round(2 * total / 1e9, 3), round(4 * total / 1e9, 3))
    rows.append(dict(zip(rows[0], last, strict=True)))
    print_rows(title, rows)
    if not size.tokens_a_frame:
        say("  convolutions: FLOPs and memory of a frame are not predicted here")
        return
    flops = fp.flops_a_frame(size)
    shown = f"{frame_size[1]}x{frame_size[0]}" if frame_size else "the video's own size"
    say(
        f"  a frame of {shown}: {size.tokens_a_frame} visual tokens, {size.patches_a_frame} patches; forward "
        f"{flops['vision'] / 1e12:.3g} TFLOPs vision, {flops['language'] / 1e12:.3g} TFLOPs language"
    )
    leaves = {r: Counter(leaf for leaf, _, _ in m) for r, m in size.matrices.items() if r in config["model"]["roles"]}
    print_rows(
        "adapter targets by role (peft.roles)",
        [
            {"role": r, "linear layers (peft.targets)": ", ".join(f"{leaf} x{n}" for leaf, n in sorted(found.items()))}
            for r, found in leaves.items()
        ],
    )
    if peft["method"] == "lora":
        try:
            check_targets(leaves, peft["roles"], peft.get("targets") or ())
        except ConfigError as error:
            say(f"\nwith this peft group: {error}")
            return
    trainable = fp.trainable_parameters(size, peft)
    say(f"  peft.method={peft['method']}: {trainable:,} parameters train, {100 * trainable / total:.2f} %")
    steps = {name: fp.memory_gb(size, config, frames, training)
             for name, training in (("training step", True), ("scoring", False))}  # fmt: skip
    memory = []
    for name, parts in steps.items():
        least, most = fp.spread_gb(parts)
        row = {"predicted peak, GB": name, **{k: round(v, 2) for k, v in parts.items()}}
        memory.append(row | {"between": f"{least:.1f} and {most:.1f}"})
    stored = f"as the checkpoint is stored, {size.dtype}" if size.dtype else "as 16 bit: how it is stored is not known"
    say(f"  weights count {stored if config['model']['dtype'] == 'auto' else config['model']['dtype']}")
    print_rows(f"memory at {frames} frames, batch {data['batch_size']}, {config['trainer']['precision']}", memory)
    say("  weights are exact; activations are a formula, good to a factor of two (between); nothing was measured")
    limit, tokens = float(config["memory_gb"]), fp.prompt_tokens(size, config, frames)
    bound = (
        f"; its context is {size.context:,} tokens, a prompt of {frames} frames has {tokens:,}" if size.context else ""
    )
    say(
        f"  within memory_gb={limit:g}: at most {fp.largest_num_frames(size, config, limit)} frames for training, "
        f"{fp.largest_num_frames(size, config, limit, training=False)} for scoring{bound}"
    )
    if size.context and tokens > size.context:
        say(f"  ! {frames} frames are more than the context holds")
    if steps["training step"]["total"] > limit:
        ways = fp.ways_to_fit(size, config, frames, limit)
        said = f"each of these would make it: {'; '.join(ways)}" if ways else "no setting that is known here would do"
        say(f"  ! a training step does not fit into memory_gb={limit:g}; {said}")


def _share(value: float | None) -> str:
    return "not computable" if value is None else f"{value:.0%}"


def _estimate(node: dict[str, Any]) -> str:
    return (
        "not computable"
        if node["value"] != node["value"]
        else f"{node['value']:.3f} [{node['low']:.3f}, {node['high']:.3f}]"
    )


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start
        from dashvlm.config.overrides import with_task

        return start("inspect", inspect, with_task(sys.argv[1:]))

    sys.exit(signals.run(main))
