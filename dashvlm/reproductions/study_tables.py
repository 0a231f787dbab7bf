"""The tables of a study: what was published with what became of it, and our own runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

from dashvlm.report.tables import COSTS, to_latex, to_markdown
from dashvlm.reproductions.studies import (
    AGAIN,
    FORMS,
    KINDS,
    Result,
    Study,
    agrees,
    read_table,
    stale_numbers,
    verdict,
)
from dashvlm.reproductions.study_runs import AUDIT

Grid = tuple[str, list[str], list[list[str]]]
WIDEST = 8
"""With more numbers a row, a published table stands on its side."""


def grids(study: Study) -> list[Grid]:
    """The study's tables: title, header, rows. Published numbers stand above what was found."""
    published = read_table(study, "published")
    made = [_published(study, kind) for kind in KINDS if any(line["kind"] == kind for line in published)]
    results = read_table(study, "results")
    for form in ("full", "smoke"):
        mine = [r for r in results if r["form"] == form]
        if mine:
            rows = list(dict.fromkeys(r["row"] for r in mine))
            shown = [m for m in [*study.metrics, *COSTS] if any(r["metric"] == m for r in mine)]
            rows = [row for row in rows if any(r["row"] == row and r["metric"] in shown for r in mine)]
            table = {(r["row"], r["metric"]): r for r in mine}
            count = {r["row"]: r["n"] for r in mine if r["metric"] in shown}
            body = [[row, *[_cell(table.get((row, m))) for m in shown], count[row]] for row in rows]
            axes = ", ".join(a.rsplit(".", 1)[-1] for a in study.axes(form)) or "run"
            titles = [COSTS.get(m, m) for m in shown]
            fixed = " ".join(map(str, study.part(form).get("fixed") or ())) if form == "full" else ""
            made.append((f"Ours, {form}: {FORMS[form]}{fixed and f' ({fixed})'}", [axes, *titles, "n"], body))
    return made


def _published(study: Study, kind: str) -> Grid:
    """One line for what was published of a row, and one for each way in which it was computed again."""
    published = [line for line in read_table(study, "published") if line["kind"] == kind]
    lines: dict[str, dict[str, Result]] = {}
    for line in published:
        lines.setdefault(line["row"], {})[line["column"]] = line
    again: dict[tuple[str, str], dict[str, Result]] = {}
    for r in read_table(study, "results"):
        if r["form"] in AGAIN and r["row"] in lines:
            again.setdefault((r["row"], r["form"]), {})[r["metric"]] = r
    # A row may have numbers of another kind; what was recomputed of those stands in their table.
    again = {k: v for k, v in again.items() if k[1] != "recomputed" or set(v) & set(lines[k[0]])}
    columns = list(dict.fromkeys([line["column"] for line in published] + [m for mine in again.values() for m in mine]))
    body = []
    for row, known in lines.items():
        about = next(iter(known.values()))
        where = ", ".join(filter(None, (about["split"], about["n"])))
        body.append([row, kind.replace("measured", "published"), *[_printed(known.get(c)) for c in columns], where])
        for form in AGAIN:
            mine = again.get((row, form))
            if mine:
                most = max(int(r["n"]) for r in mine.values())
                cells = [_again(known.get(c), mine.get(c), most) for c in columns]
                body.append([row, form, *cells, _verdict(list(known.values()), mine) if form == "recomputed" else ""])
    title = KINDS[kind]
    if len(columns) > WIDEST:
        header = ["", *[f"{row} {form}" for row, form, *_ in body]]
        names = [*columns, "split, n; verdict"]
        return title, header, [[name, *[line[i + 2] for line in body]] for i, name in enumerate(names)]
    shown = [["" if i and line[0] == body[i - 1][0] else line[0], *line[1:]] for i, line in enumerate(body)]
    return title, ["row", "", *columns, "split, n; verdict"], shown


def _verdict(published: Sequence[Result], mine: Mapping[str, Result]) -> str:
    same, others, absent = verdict(published, _values(mine))
    said = f"{len(same)} of {len(same) + len(others)} reproduced"
    if absent:
        said += f", {len(absent)} not computed"
    return said


def _values(mine: Mapping[str, Result]) -> dict[str, float]:
    return {m: float(r["value"]) for m, r in mine.items() if r["value"]}


def origins(study: Study) -> list[list[str]]:
    """Published row -> the file that it can be recomputed from, and what became of that."""
    results, out = read_table(study, "results"), []
    published = read_table(study, "published")
    for row in dict.fromkeys(line["row"] for line in published):
        lines = [line for line in published if line["row"] == row]
        lines = [line for line in lines if line["kind"] != "expected"] or lines  # nothing gives an expectation back
        mine = {r["metric"]: r for r in results if (r["form"], r["row"]) == ("recomputed", row)}
        meant = study.sources.get(row, {})
        file = meant.get("file", "none is public")
        if mine:
            said = f"{_verdict(lines, mine)} from {next(iter(mine.values()))['run_id']}"
            absent = verdict(lines, _values(mine))[2]
            said += f" (not {', '.join(absent)})" if absent else ""
        elif lines[0]["kind"] != "measured":
            said = "nothing was measured" if lines[0]["kind"] == "expected" else "no measurement is public"
        else:
            said = "not recomputed: the file was not at hand; predictions=FILE does it"
        out.append([row, file, "; ".join(filter(None, (said, meant.get("because"))))])
    return out


def overview(studies: Sequence[Study]) -> Grid:
    """How many numbers of each study were published, computed again, and reproduced."""
    body = []
    for study in studies:
        published, results = read_table(study, "published"), read_table(study, "results")
        again = reproduced = 0
        for row in {line["row"] for line in published}:
            mine = {r["metric"]: r for r in results if (r["form"], r["row"]) == ("recomputed", row)}
            same, others, _ = verdict([line for line in published if line["row"] == row], _values(mine))
            again, reproduced = again + len(same) + len(others), reproduced + len(same)
        ours = sum(1 for r in {(r["form"], r["row"]) for r in results} if r[0] == "full")
        body.append([study.name, str(len(published)), str(again), str(reproduced), str(ours)])
    body.append(["all", *(str(sum(int(line[i]) for line in body)) for i in range(1, 5))])
    return "Studies", ["study", "published numbers", "recomputed", "reproduced", "our rows on real data"], body


def markdown(study: Study) -> str:
    """The generated page of a study."""
    spec = study.spec
    parts = [f"# {spec['title']}", f"After {spec['cite']}. Generated by `make studies`; do not edit."]
    for title, header, body in grids(study):
        parts.append(f"## {title}\n\n{to_markdown(header, body).rstrip()}")
    traced = origins(study)
    if traced:
        table = to_markdown(["row", "recomputed from", "what became of it"], traced).rstrip()
        parts.append("## Where the published rows come from\n\n" + table)
    if not any(r["form"] == "full" for r in read_table(study, "results")):
        parts.append("Our runs on the real data are missing: they need the data and a GPU.")
    parts.append("## Shortcut audit\n\n" + _audited(read_table(study, "results")))
    parts.append("## What to know about the published numbers\n\n" + "\n".join(f"* {w}" for w in spec["why"]))
    known = spec.get("hyperparameters") or []
    if known:
        rows = [[str(h["key"]), _setting(h["value"]), _said(h)] for h in known]
        parts.append(
            "## Settings and where they come from\n\n" + to_markdown(["key", "value", "source says"], rows).rstrip()
        )
    full, smoke = (f"python -m dashvlm.train {shlex.join(study.words(form))}" for form in ("full", "smoke"))
    lines = [f"{full}  # needs: data, a GPU", smoke]
    if spec.get("recompute"):
        again = f"python -m dashvlm.report study={study.name} predictions=FILE"
        lines.append(f"{again}  # needs: the published predictions")
    parts.append("## Run it\n\n```bash\n" + "\n".join(lines) + "\n```\n\n" + str(spec.get("cost", "")))
    return "\n\n".join(parts).rstrip() + "\n"


def latex(study: Study) -> str:
    """All tables of a study for a paper (booktabs)."""
    return "\n".join(to_latex(*grid) for grid in grids(study))


def stale(study: Study, results: Sequence[Result]) -> list[str]:
    """What of the frozen numbers and of the written tables is not what it would be if it were made now."""
    out = stale_numbers(study, results)
    for name, text in (("table.md", markdown(study)), ("table.tex", latex(study))):
        path = study.folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            out.append(f"{path} is not what study.yaml, published.csv and results.csv make")
    return out


def _audited(results: Sequence[Result]) -> str:
    """What the readers without pixels made of the data of our runs."""
    lines = []
    for form in ("full", "smoke"):
        mine = [r for r in results if r["form"] == form and r["metric"] == AUDIT]
        bad = [f"{r['row']}: {r['value']}" for r in mine if float(r["value"])]
        if mine:
            said = f"readers that are better than chance: {'; '.join(bad)}" if bad else "none is better than chance"
            lines.append(f"{mine[0]['n']} readers that see no pixels, on the data of our {form} form: {said}.")
    lines.append("On your data: `python -m dashvlm.inspect data=NAME audit=true`.")
    return "\n".join(lines)


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _said(setting: Mapping[str, Any]) -> str:
    """Where a setting comes from, and the job that has it where they differ."""
    return f"{setting['says']} ({setting['with']})" if setting.get("with") else str(setting["says"])


def _printed(line: Result | None) -> str:
    """A published number as it was printed; long ones with six digits."""
    if line is None:
        return "–"
    text = line["value"]
    return text if len(text) <= 8 or " " in text else f"{float(text):.6g}"


def _again(published: Result | None, line: Result | None, most: int) -> str:
    """A number computed again, with the published one's digits where these say it; and of how many, where of fewer."""
    if line is None or not line["value"]:
        return "–"
    value = float(line["value"])
    if line["form"] != "recomputed" or not published or not agrees(published, value):
        few = f", n {line['n']}" if line["form"] != "recomputed" and int(line["n"]) < most else ""
        return _cell(line) + few
    text = _printed(published)
    digits = len(text.partition(".")[2])
    if text.replace(".", "").isdigit() and digits <= 6:
        way = ROUND_DOWN if published["tolerance"].startswith("cut") else ROUND_HALF_UP
        shown = str(Decimal(line["value"]).quantize(Decimal(1).scaleb(-digits), way))
        if abs(float(shown) - value) <= 0.01 * abs(value):  # 2 for 2.13 would look like more agreement than there is
            return shown
    return f"{value:.6g}" if len(text) > 5 else f"{value:.4g}"


def _cell(line: Result | None) -> str:
    if line is None or not line["value"]:
        return "–"
    value = float(line["value"])
    if line["low"] and line["low"] != line["high"]:
        return f"{value:.3f} [{float(line['low']):.2f}, {float(line['high']):.2f}]"
    return f"{value:.4g}" if not 0 < abs(value) < 1e-6 else "< 1e-6"
