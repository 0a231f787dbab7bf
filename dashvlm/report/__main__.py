"""Tables: of the runs in a folder, or of published predictions.

python -m dashvlm.report [paths.output_dir=runs]
python -m dashvlm.report table=bvpi_captions predictions=FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig


def report(cfg: DictConfig) -> None:
    """Print and write the table of all runs below ``paths.output_dir``."""
    from dashvlm.errors import DataError
    from dashvlm.report.collect import axes_of, collect
    from dashvlm.report.plots import plot_sweep
    from dashvlm.report.tables import notes_of, print_table, sweep_rows, to_markdown

    output = Path(cfg.paths.output_dir)
    if cfg.table:
        _published(cfg, output)
        return
    folders = sorted(p.parent for p in output.glob("*/config.yaml"))
    if not folders:
        raise DataError(
            f"no runs in {output}",
            do="train one first, or name another folder: paths.output_dir=FOLDER",
        )
    table = collect(folders)
    table.to_csv(output / "report.csv", index=False)
    if "task.name" not in table:
        table["task.name"] = None
    parts, pictures = [], []
    for task, mine in table.groupby("task.name", dropna=False, sort=True):  # tasks have different metrics
        shown = mine.dropna(axis=1, how="all")
        axes = axes_of(shown, list(cfg.axes))[: int(cfg.max_axes)]
        header, body = sweep_rows(shown, axes)
        notes = notes_of(shown)
        title = f"{len(mine)} runs of {task} in {output}"
        print_table(title, header, body, notes)
        parts.append(f"### {title}\n\n{to_markdown(header, body, notes)}")
        made = plot_sweep(shown, axes, output / f"report-{task}.png")
        pictures += [made.name] if made else []
    (output / "report.md").write_text("\n".join(parts), encoding="utf-8")
    print(f"written: {output}/{', '.join(['report.csv', 'report.md', *pictures])}")


def _published(cfg: DictConfig, output: Path) -> None:
    """Print and write a table of published predictions."""
    import csv

    from omegaconf import OmegaConf

    from dashvlm.report.published import build
    from dashvlm.report.tables import print_table, to_markdown

    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    tables, notes = build(str(cfg.table), {str(k): v for k, v in options.items()})
    for title, header, body in tables:
        print_table(title, header, body)
    for note in notes:
        print(f"  ! {note}")
    output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"### {title}\n\n{to_markdown(header, body)}" for title, header, body in tables)
    (output / f"{cfg.table}.md").write_text(text + "\n" + "".join(f"- {n}\n" for n in notes), encoding="utf-8")
    with (output / f"{cfg.table}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for title, header, body in tables:
            writer.writerow(["table", *header])
            writer.writerows([title, *row] for row in body)
    print(f"written: {output}/{cfg.table}.md, {cfg.table}.csv")


if __name__ == "__main__":
    from dashvlm.cli import start

    sys.exit(start("report", report, sys.argv[1:]))
