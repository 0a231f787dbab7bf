"""The table of the runs in a folder: ``python -m dashvlm.report [paths.output_dir=runs]``."""

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
    folders = sorted(p.parent for p in output.glob("*/config.yaml"))
    if not folders:
        raise DataError(
            f"no runs in {output}",
            do="train one first, or name another folder: paths.output_dir=FOLDER",
        )
    table = collect(folders)
    axes = axes_of(table, list(cfg.axes))[: int(cfg.max_axes)]
    header, body = sweep_rows(table, axes)
    notes = notes_of(table)
    print_table(f"{len(folders)} runs in {output}", header, body, notes)
    table.to_csv(output / "report.csv", index=False)
    (output / "report.md").write_text(to_markdown(header, body, notes), encoding="utf-8")
    plot_sweep(table, axes, output / "report.png")
    print(f"written: {output}/report.csv, report.md, report.png")


if __name__ == "__main__":
    from dashvlm.cli import start

    sys.exit(start("report", report, sys.argv[1:]))
