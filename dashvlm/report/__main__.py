"""Tables: of the runs in a folder, of a study, of two runs against each other.

python -m dashvlm.report [paths.output_dir=runs]                 table, plots, HTML of all runs
python -m dashvlm.report study=NAME [predictions=FILE]           published, recomputed, corrected, ours
python -m dashvlm.report compare='[runs/A,runs/B]'               paired differences on the same samples
python -m dashvlm.report wandb=ENTITY/PROJECT [study=NAME]       the same from the runs of a W&B project
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dashvlm.safety.files import own, read_table
from dashvlm.safety.plaintext import cells, say


def report(cfg: DictConfig) -> None:
    """Dispatch on what is asked for."""
    from dashvlm.reproductions.study_report import report_study

    options: Any = OmegaConf.to_container(cfg, resolve=True)
    study = options["study"]
    _check(options, study)
    if options["wandb"]:
        _fetch(options, study)
    if study:
        report_study({**options, "study": study})
    elif options["compare"]:
        wanted = options["compare"] if isinstance(options["compare"], list) else [options["compare"]]
        report_comparison([Path(str(f)) for f in wanted], Path(options["paths"]["output_dir"]))
    else:
        report_runs(options)


def _check(options: dict[str, Any], study: str | None) -> None:
    """Refuse keys that would do nothing.

    Raises:
        ConfigError: with all of them.
    """
    from dashvlm.config.overrides import refuse

    alone = [k for k in ("predictions", "command", "freeze", "check", "workspace") if options[k] and not study]
    wrong = [f"{k}={options[k]} does nothing without study=NAME" for k in alone]
    wrong += [f"{k}={options[k]} is neither true nor false" for k in ("freeze", "check", "html", "spice")
              if not isinstance(options[k], bool)]  # fmt: skip
    if options["compare"] and study:
        wrong.append("compare=[A,B] and study=NAME are two questions: ask one")
    if options["freeze"] and options["check"]:
        wrong.append("freeze=true writes what check=true compares: ask for one of them")
    if options["command"] and options["command"] not in ("full", "smoke"):
        wrong.append(f"command={options['command']} is neither full nor smoke")
    refuse(wrong)


def _fetch(options: dict[str, Any], study: str | None) -> None:
    from dashvlm.report.wandb_runs import fetch_runs

    output = Path(options["paths"]["output_dir"])
    from dashvlm.reproductions.studies import load_study

    owner = load_study(study).owner if study and study != "all" else None
    there, lacking = fetch_runs(str(options["wandb"]), output, owner)
    say(f"{len(there)} finished runs of {options['wandb']} are in {output}")
    if owner and not there:
        say(f"  ! none of its finished runs has the tag of the study {owner} (study:{owner}/full or /smoke)")
    if lacking:
        say(f"  ! {len(lacking)} without the files that tables are made from: {', '.join(lacking[:5])}")


def report_runs(options: dict[str, Any]) -> None:
    """Print and write the table of all runs below ``paths.output_dir``."""
    from dashvlm.errors import DataError
    from dashvlm.figures import save
    from dashvlm.report.collect import axes_of, collect, ordered
    from dashvlm.report.comparisons import comparison_notes
    from dashvlm.report.html import run_labels, stream_figure, sweep_picture, write_html
    from dashvlm.report.sweep_plot import plot_sweep
    from dashvlm.report.tables import kinds_of, notes_of, print_table, sweep_rows, to_latex, to_markdown

    output = Path(options["paths"]["output_dir"])
    folders = sorted(p.parent for p in output.glob("*/config.yaml"))
    if not folders:
        raise DataError(
            f"no runs in {output}",
            do="train one first, or name another folder: paths.output_dir=FOLDER",
        )
    table = collect(folders)
    cells(table).to_csv(own(output / "report.csv"), index=False)
    if "task.name" not in table:
        table["task.name"] = None
    parts, latex, pictures, said = [], [], [], {}
    for task, mine in table.groupby("task.name", dropna=False, sort=True):  # tasks have different metrics
        shown = mine.dropna(axis=1, how="all")
        axes = axes_of(shown, list(options["axes"]))[: int(options["max_axes"])]
        header, body = sweep_rows(ordered(shown, axes), axes)
        notes = notes_of(shown)
        try:
            notes += comparison_notes(output, shown)
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # of rows that are not as written
            notes.append(f"not compared: {type(error).__name__}: {error}"[:200])
        said[str(task)] = notes
        title = f"{len(mine)} runs of {task} in {output}"
        print_table(title, header, body, notes)
        parts.append(f"### {title}\n\n{to_markdown(header, body, notes)}")
        latex.append(to_latex(title, header, body))
        made = plot_sweep(shown, axes, own(output / sweep_picture(task)))
        pictures += [made.name] if made else []
        labels = run_labels(ordered(shown, axes), axes)
        figure = stream_figure([f for f in folders if f.name in labels], next(iter(kinds_of(shown)), None), labels)
        if figure is not None:
            path = own(output / sweep_picture(f"stream-{task}"))
            pictures.append(save(figure, path).name)
    own(output / "report.md").write_text("\n".join(parts), encoding="utf-8")
    own(output / "report.tex").write_text("\n".join(latex), encoding="utf-8")
    names = ["report.csv", "report.md", "report.tex", *pictures]
    if options["html"]:
        names.append(
            write_html(folders, table, own(output / "report.html"), Path(options["paths"]["cache_dir"]), said).name
        )
    say(f"written: {output}/{', '.join(names)}")


def report_comparison(folders: list[Path], output: Path) -> None:
    """Print and write every later run against the first, paired by sample."""
    import pandas as pd

    from dashvlm.errors import ConfigError
    from dashvlm.report.collect import read_result
    from dashvlm.report.compare import compare
    from dashvlm.report.tables import print_table, to_latex, to_markdown
    from dashvlm.tasks.evaluation import evaluation_of

    results = [read_result(f) for f in folders]
    kinds = {evaluation_of(r).name: evaluation_of(r) for r in results if r["status"] == "done"}
    if len(set(folders)) < max(2, len(folders)) or any(r["status"] != "done" for r in results) or len(kinds) > 1:
        raise ConfigError(
            "compare needs two or more finished runs of one kind of task",
            got=", ".join(f"{f.name} {r['status']}" for f, r in zip(folders, results, strict=True)) or "nothing",
            do="compare='[runs/A,runs/B]', each once",
        )
    (kind,) = kinds.values()
    tables = [read_table(f / "predictions.parquet") for f in folders]
    body = []
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        found = compare(tables[0], table, kind)
        if not found.samples:
            raise ConfigError(f"{folders[0].name} and {folder.name} share no sample", do="compare runs on one dataset")
        clear = found.difference.low > 0 or found.difference.high < 0
        body.append([folder.name, str(found.samples), str(found.first), str(found.second), str(found.difference),
                     "clear of 0" if clear else "not clear", f"{found.only_first} / {found.only_second}",
                     f"{found.p_mcnemar:.3g}"])  # fmt: skip
    header = ["run", "samples", f"{folders[0].name}", "this run", "difference [95 %]", "verdict",
              "only first / only this right", "McNemar p"]  # fmt: skip
    title = f"{kind.primary}, paired by sample, groups resampled together; against {folders[0].name}"
    print_table(title, header, body)
    output.mkdir(parents=True, exist_ok=True)
    cells(pd.DataFrame(body, columns=header)).to_csv(own(output / "compare.csv"), index=False)
    own(output / "compare.md").write_text(f"### {title}\n\n{to_markdown(header, body)}", encoding="utf-8")
    own(output / "compare.tex").write_text(to_latex(title, header, body), encoding="utf-8")
    say(f"written: {output}/compare.csv, compare.md, compare.tex")


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start

        return start("report", report, sys.argv[1:])

    sys.exit(signals.run(main))
