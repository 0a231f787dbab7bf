"""Text to (value or None, status). Pure; never guesses a default.

The published parsers this replaces turned failures into answers: "A" for multiple choice,
negative for crashes. Here a text that is not an answer is counted as one that is not.
"""

from __future__ import annotations

import re
from typing import Literal

Status = Literal["parsed", "unparsed", "refused", "failed"]
"""parsed: a value was read. unparsed: text, but no answer. refused: the model declined.
failed: there is no text, because the row could not be computed."""

_TAG = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)
_BARE = re.compile(r"^\W*(yes|no)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|cannot (?:assist|help|determine|analy[sz]e)|can'?t (?:assist|help)|"
    r"unable to (?:assist|help|determine|analy[sz]e)|as an ai)\b",
    re.IGNORECASE,
)


def parse_yes_no(text: str | None) -> tuple[int | None, Status]:
    """Read a yes/no answer.

    An ``<answer>`` tag decides; two tags that disagree decide nothing. Without a tag the text
    must begin with the word. "No" within a sentence is not an answer.

    Returns:
        (1, parsed) for yes, (0, parsed) for no, (None, status) otherwise.

    Example:
        >>> parse_yes_no(" Yes."), parse_yes_no("<reasoning>no</reasoning><answer>Yes</answer>")
        ((1, 'parsed'), (1, 'parsed'))
        >>> parse_yes_no("There is no threat"), parse_yes_no("I am sorry, I cannot help.")
        ((None, 'unparsed'), (None, 'refused'))
        >>> parse_yes_no("<answer>Yes</answer><answer>No</answer>"), parse_yes_no("Yes or no")
        ((None, 'unparsed'), (None, 'unparsed'))
    """
    if text is None:
        return None, "failed"
    tags = {found.lower() for found in _TAG.findall(text)}
    if len(tags) == 1:
        return int(tags == {"yes"}), "parsed"
    bare = _BARE.match(text)
    if not tags and bare:
        word = bare.group(1).lower()
        other = "no" if word == "yes" else "yes"
        if not re.search(rf"\b{other}\b", text[bare.end() :], re.IGNORECASE):
            return int(word == "yes"), "parsed"
        return None, "unparsed"
    return None, "refused" if _REFUSAL.search(text) else "unparsed"
