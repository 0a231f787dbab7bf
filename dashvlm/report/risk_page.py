"""One page for one video: it plays, and a cursor in the curve of its risk goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from dashvlm.metrics.functional import THRESHOLD


def write_risk_page(
    path: Path,
    video: Path,
    title: str,
    run: str,
    rows: Sequence[Mapping[str, Any]],
    marks: Mapping[str, float],
    warnings: Sequence[str],
    total_s: float,
    height: int,
) -> Path:
    """Write the page.

    Args:
        path: of the page.
        video: beside it, as a browser plays it.
        title: of the page.
        run: name of the run.
        rows: from :func:`dashvlm.engine.over_time.risk_over_time`.
        marks: name -> time in seconds of what is known of the video.
        warnings: what a reader must know.
        total_s: length of the video.
        height: of its frames.
    """
    known = [row for row in rows if row["risk"] == row["risk"]]
    top = max([row for row in known if not row["note"]] or known, key=lambda row: row["risk"])
    data = {
        "rows": [{k: (None if row[k] != row[k] else row[k]) for k in ("time_s", "risk", "note")} for row in rows],
        "marks": dict(marks), "total": total_s, "threshold": THRESHOLD,
    }  # fmt: skip
    source = (Path(__file__).parent / "templates" / "risk.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    path.write_text(
        page.render(
            title=title, run=run, video=quote(video.name), warnings=list(warnings), data=data, small=height < 240,
            top_risk=top["risk"], top_time=top["time_s"],
        ),
        encoding="utf-8",
    )  # fmt: skip
    return path
