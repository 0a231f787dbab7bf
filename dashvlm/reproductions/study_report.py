"""The ``study=`` side of the report verb: print, freeze, check, and say how to run a study."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dashvlm.config.find import STUDIES, study_names
from dashvlm.errors import ConfigError, DataError
from dashvlm.report.tables import print_table
from dashvlm.reproductions.published import Recomputed
from dashvlm.reproductions.recompute import against_published, recompute, unknown
from dashvlm.reproductions.studies import (
    AGAIN,
    Result,
    Study,
    load_study,
    read_table,
    refuse_changed,
    refuse_wrong,
    unexplained,
    write_results,
)
from dashvlm.reproductions.study_runs import run_results
from dashvlm.reproductions.study_tables import grids, latex, markdown, origins, overview, stale
from dashvlm.safety.plaintext import say


def report_study(options: Mapping[str, Any]) -> None:
    """Do what the options ask of one study, or of all.

    Args:
        options: the ``report`` configuration: ``study`` (a name or ``all``), ``predictions``, ``command``
            (print how to run it, ``full`` or ``smoke``), ``freeze`` (write what was found to results.csv and
            table.md), ``check`` (fail if they are stale), ``workspace`` (ENTITY/PROJECT on W&B), ``studies_dir``.

    Raises:
        DataError: if ``check`` finds something stale, or predictions are not those of the row they are said to be.
        ConfigError: for an unknown study.
    """
    root = Path(options["studies_dir"] or STUDIES)
    names = study_names(root) if options["study"] == "all" else [str(options["study"])]
    if not names:
        raise ConfigError(f"there is no study below {root}", do="studies_dir=FOLDER of folders with a study.yaml")
    studies = [load_study(name, root) for name in names]
    wanted = options.get("predictions")
    files = [Path(str(f)) for f in ([wanted] if isinstance(wanted, str) else wanted or [])]
    if files and len(names) > 1:
        raise ConfigError("predictions=FILE belongs to one study", got=f"study={options['study']}")
    if options["workspace"]:
        from dashvlm.reproductions.workspace import save_workspace

        entity, _, project = str(options["workspace"]).rpartition("/")
        for study in studies:
            say(f"written: {save_workspace(study, entity, project)}")
        return
    if options["command"]:
        for study in studies:
            say(f"python -m dashvlm.train {shlex.join(study.words(str(options['command'])))}")
        return
    if len(studies) > 1 and not options["check"] and not options["freeze"]:
        print_table(*overview(studies))
    problems: list[str] = []
    frozen = computed = 0
    for study in studies:
        again = recompute(study, files, options)
        if not options["check"]:
            refuse_changed(study)
        odd = [f"{name} is none of the published files" for name in unknown(study, again)]
        found = run_results(study, Path(options["paths"]["output_dir"])) + [
            r for a in again if a.row for r in a.results()
        ]
        if options["check"]:
            problems += [f"{study.name}: {p}" for p in [*odd, *stale(study, found)]]
            frozen, computed = frozen + len(read_table(study, "results")), computed + len(found)
        elif options["freeze"]:
            refuse_wrong(study, [*odd, *unexplained(study, found)])
            _freeze(study, found)
        else:
            _show(study, again if files else [], found, odd, options)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(
            f"{len(problems)} of the studies' numbers or tables are stale", got="; ".join(problems[:3]) + more,
            do="look at what changed, then `make studies` (report study=all freeze=true)",
        )  # fmt: skip
    if options["check"]:
        say(
            f"nothing is stale in {', '.join(names)}: of {frozen} frozen numbers {computed} were computed again from "
            "what is here, the others are as they were frozen, and the tables are made from them"
        )


def _freeze(study: Study, found: Sequence[Result]) -> None:
    if found:
        write_results(study, found)
    (study.folder / "table.md").write_text(markdown(study), encoding="utf-8")
    (study.folder / "table.tex").write_text(latex(study), encoding="utf-8")
    say(f"written: {study.folder}/table.md, table.tex" + (", results.csv" if found else ""))


def _show(
    study: Study, again: Sequence[Recomputed], found: Sequence[Result], odd: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Print the study with what was found now in the place of what is frozen.

    Raises:
        DataError: if predictions are not those of the published row that they are said to be.
    """
    for one in again:
        print_table(*against_published(study, one))
        for title, header, body in one.details:
            print_table(title, header, body)
        for note in one.notes:
            say(f"  ! {one.source}: {note}")
    rows = {line["row"] for line in read_table(study, "published")}
    if odd:  # its table stands above; the study's own would not be about it
        raise DataError(
            f"{study.name}: predictions that were not published", got="; ".join(odd),
            do=f"python -m dashvlm.score task={study.task} predictions=FILE truth=FILE published={study.name}",
        )  # fmt: skip
    refuse_wrong(study, unexplained(study, [r for r in found if r["row"] in rows]))
    with tempfile.TemporaryDirectory() as folder:  # the frozen numbers stay as they are
        shown = Study(study.name, Path(folder), study.spec)
        for name in ("published.csv", "results.csv"):
            if (study.folder / name).is_file():
                (shown.folder / name).write_bytes((study.folder / name).read_bytes())
        kept = [r for r in found if r["form"] not in AGAIN or r["row"] in rows]
        if kept:
            write_results(shown, kept)
        for title, header, body in grids(shown):
            print_table(f"{study.name}: {title}", header, body)
        for row, file, said in origins(shown):
            say(f"  {row}: {file}: {said}")
        if not rows:
            say("  nothing was published for this table")
        if not again:  # what is known of the published files says nothing of the one at hand
            for why in study.spec["why"]:
                say(f"  ! {why}")
        text = markdown(shown)
    output = Path(options["paths"]["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{study.name}.md").write_text(text, encoding="utf-8")
    say(f"written: {output}/{study.name}.md")
