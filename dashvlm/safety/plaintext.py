"""What strangers wrote stays text: in a terminal, a spreadsheet, Markdown and LaTeX. HTML is escaped by Jinja."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"^[\s\x00-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_MARKDOWN = re.compile(r"([\\|]|<(?=[A-Za-z/!?])|\](?=[(\[:]))")  # table cells, HTML, links and pictures
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "·": r"\textperiodcentered{}"}  # fmt: skip


def visible(text: str, lines: bool = False) -> str:
    r"""Show control characters, and those that reverse the direction of text, as their code points.

    Args:
        text: anything.
        lines: keep line ends and tabs.

    Example:
        >>> visible("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        c if c in kept or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in "\u200c\u200d" else
        f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text
    )  # fmt: skip


def cell(value: Any) -> Any:
    """A value for a CSV file that no spreadsheet takes for a formula; numbers stay numbers.

    Example:
        >>> [cell(v) for v in ("=HYPERLINK(1)", "-0.5", "-cmd|x", "a car", 3)]
        ["'=HYPERLINK(1)", '-0.5', "'-cmd|x", 'a car', 3]
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV file: texts through :func:`cell`, names of columns too."""
    import pandas as pd

    safe = table.copy()
    for number, kind in enumerate(table.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)):
            safe.isetitem(number, table.iloc[:, number].map(cell).astype(object))
    return safe.rename(columns=cell)


def markdown(text: Any) -> str:
    r"""A text for Markdown, on one line.

    Example:
        >>> markdown("![x](http://a) | <b>")
        '![x\\](http://a) \\| \\<b>'
    """
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(str(text).split())))


def latex(text: Any) -> str:
    r"""A text for LaTeX, on one line.

    Example:
        >>> latex("\\input{x} 50 %")
        '\\textbackslash{}input\\{x\\} 50 \\%'
    """
    safe = "".join(_LATEX.get(c, c) for c in visible(" ".join(str(text).split())))
    return f"{{{safe[0]}}}{safe[1:]}" if safe[:1] in ("[", "*") else safe  # behind \\\\ these are an option


def say(text: str = "", error: bool = False) -> None:
    """Print a line or more to the terminal, with what strangers wrote in it made visible."""
    print(visible(text, lines=True), file=sys.stderr if error else sys.stdout, flush=True)
