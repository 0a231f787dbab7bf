"""The form of an answer that is argued for: ``<reasoning>`` and ``<answer>`` tags, each on its line.

The form of frankafan/dashcam-collisions, where it was taught; there its parsers lacked DOTALL, so a
reasoning of two lines earned nothing.
"""

from __future__ import annotations

import re

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
ANSWER_PREFIX = "<answer>\n"
"""What an answer without reasoning begins with."""

_STRICT = re.compile(
    r"<reasoning>\n(?P<reasoning>.*?)\n</reasoning>\n<answer>\n(?P<answer>[^\n]*)\n</answer>\n?", re.DOTALL
)
_SOFT = re.compile(r"\s*<reasoning>(?P<reasoning>.*?)</reasoning>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


def wrap(reasoning: str, answer: str) -> str:
    r"""Write reasoning and answer in the form that is taught; tags inside the reasoning are taken out.

    Example:
        >>> wrap("The gap closes.", "Yes")
        '<reasoning>\nThe gap closes.\n</reasoning>\n<answer>\nYes\n</answer>'
    """
    return f"<reasoning>\n{_bare(reasoning)}\n</reasoning>\n{ANSWER_PREFIX}{answer}\n</answer>"


def split(text: str, strict: bool = False) -> tuple[str, str] | None:
    r"""Take a text of exactly this form apart.

    Args:
        text: what was written.
        strict: line breaks must stand where :func:`wrap` puts them; else any white space may.

    Returns:
        Reasoning and answer, stripped; None if a tag is missing, repeated or empty, or if there is more.

    Example:
        >>> split("<reasoning>A.\nB.</reasoning> <answer>No</answer>")
        ('A.\nB.', 'No')
        >>> split("<reasoning></reasoning><answer>No</answer>") is None
        True
    """
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    found = (_STRICT if strict else _SOFT).fullmatch(text)
    if not found:
        return None
    reasoning, answer = found["reasoning"].strip(), found["answer"].strip()
    return (reasoning, answer) if reasoning and answer else None


def prefix_after_reasoning(text: str) -> str:
    """The beginning of an answer after the reasoning of a text, whether or not the text has come to its end."""
    reasoning = text.split("</reasoning>")[0].split(ANSWER_PREFIX.strip())[0]
    return f"<reasoning>\n{_bare(reasoning)}\n</reasoning>\n{ANSWER_PREFIX}"


def _bare(text: str) -> str:
    return re.sub(r"\s*</?(?:reasoning|answer)>\s*", " ", text).strip()
