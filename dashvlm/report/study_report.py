"""The ``study=`` side of the report verb: print, freeze, check, and say how to run a study."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError, DataError
from dashvlm.report.studies import (
    STUDIES,
    Result,
    Study,
    grids,
    load_study,
    markdown,
    recomputed_results,
    result_line,
    run_results,
    stale,
    study_names,
    write_results,
)
from dashvlm.report.tables import print_table, to_latex


def report_study(options: Mapping[str, Any]) -> None:
    """Do what the options ask of one study, or of all.

    Args:
        options: the ``report`` configuration: ``study`` (a name or ``all``), ``predictions``, ``command``
            (print how to run it, ``full`` or ``smoke``), ``freeze`` (write what was found to results.csv and
            table.md), ``check`` (fail if they are stale), ``workspace`` (ENTITY/PROJECT on W&B), ``studies_dir``.

    Raises:
        DataError: if ``check`` finds something stale.
        ConfigError: for an unknown study.
    """
    root = Path(options["studies_dir"] or STUDIES)
    names = study_names(root) if options["study"] == "all" else [str(options["study"])]
    wanted = options.get("predictions")
    files = [Path(str(f)) for f in ([wanted] if isinstance(wanted, str) else wanted or [])]
    if files and len(names) > 1:
        raise ConfigError("predictions=FILE belongs to one study", got=f"study={options['study']}")
    problems: list[str] = []
    for name in names:
        study = load_study(name, root)
        if options["workspace"]:
            from dashvlm.report.workspace import save_workspace

            entity, _, project = str(options["workspace"]).rpartition("/")
            print(f"written: {save_workspace(study, entity, project)}")
            continue
        if options["command"]:
            print(f"python -m dashvlm.train {shlex.join(study.words(str(options['command'])))}")
            continue
        results = _found(study, files, options)
        if options["check"]:
            problems += [f"{name}: {p}" for p in stale(study, results)]
        elif options["freeze"]:
            if results:
                write_results(study, results)
            (study.folder / "table.md").write_text(markdown(study), encoding="utf-8")
            (study.folder / "table.tex").write_text(
                "\n".join(to_latex(*grid) for grid in grids(study)), encoding="utf-8"
            )
            print(f"written: {study.folder}/table.md, table.tex" + (", results.csv" if results else ""))
        else:
            _show(study, results, bool(files), options)
    if options["check"]:
        if problems:
            raise DataError(
                f"{len(problems)} numbers or tables of studies are stale", got="; ".join(problems[:3]),
                do="look at what changed, then `make studies` (report study=all freeze=true)",
            )  # fmt: skip
        print(f"{len(names)} studies are what their runs and their data make")


def _found(study: Study, files: list[Path], options: Mapping[str, Any]) -> list[Result]:
    """Everything that can be found now: runs below ``paths.output_dir``, and published predictions."""
    results = run_results(study, Path(options["paths"]["output_dir"]))
    if not files:
        return results
    if study.spec.get("recompute") == "nexar":
        found, notes = recomputed_results(study, files)
        for note in notes:
            print(f"  ! {note}")
        return results + found
    if study.spec.get("recompute"):
        from dashvlm.report.published import build

        tables, notes, values = build(study.name, {**options, "predictions": [str(f) for f in files]})
        for title, header, body in tables:
            print_table(title, header, body)
        for note in notes:
            print(f"  ! {note}")
        plain = [(row, c, {"value": v, "low": None, "high": None}, n) for row, c, v, n in values]
        return results + [result_line("recomputed", r, c, v, n, files[0].name, "") for r, c, v, n in plain]
    raise ConfigError(f"study={study.name} has no published predictions", do="leave predictions= out")


def _show(study: Study, results: list[Result], recomputed: bool, options: Mapping[str, Any]) -> None:
    """Print the study with what was found now in the place of what is frozen."""
    import tempfile

    from dashvlm.report.studies import read_table

    with tempfile.TemporaryDirectory() as folder:  # the frozen numbers stay as they are
        shown = Study(study.name, Path(folder), study.spec)
        for name in ("published.csv", "results.csv"):
            if (study.folder / name).is_file():
                (shown.folder / name).write_bytes((study.folder / name).read_bytes())
        if results:
            write_results(shown, results)
        for title, header, body in grids(shown):
            print_table(f"{study.name}: {title}", header, body)
        if not read_table(shown, "published"):
            print("  nothing was published for this table")
        for why in study.spec["why"]:
            print(f"  ! {why}")
        output = Path(options["paths"]["output_dir"])
        output.mkdir(parents=True, exist_ok=True)
        text = markdown(shown)
    (output / f"{study.name}.md").write_text(text, encoding="utf-8")
    print(f"written: {output}/{study.name}.md")
