"""Text to (value or None, status). Pure; never guesses a default.

The published parsers this replaces turned failures into answers: "A" for multiple choice,
negative for crashes. Here a text that is not an answer is counted as one that is not.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Status = Literal["parsed", "unparsed", "refused", "failed"]
"""parsed: a value was read. unparsed: text, but no answer. refused: the model declined.
failed: there is no text, because the row could not be computed."""

_TAG = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)
_BARE = re.compile(r"^\W*(yes|no)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|cannot (?:assist|help|determine|analy[sz]e)|can'?t (?:assist|help)|"
    r"unable to (?:assist|help|determine|analy[sz]e)|as an ai|not sure|do not know|don'?t know|"
    r"không biết|không chắc|không thể)\b",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer."""
    return bool(_REFUSAL.search(text))


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


_KEYWORD = r"(?:answer|option|choose|đáp án|lựa chọn|chọn|trả lời)"
_REPEATED = re.compile(r"^\W*([A-Z])\s*[.):]")  # an option repeated: "B. Đúng"
_OPTION = re.compile(r"(?:^|\s)([A-Z])\s*[.):]")
_LETTER_RULES = (
    # An explicit statement, with nothing but an "is" and punctuation in between.
    (
        re.compile(
            rf"(?i:<answer>)\s*([A-Z])\s*(?i:</answer>)|(?i:\b{_KEYWORD})\W*(?:(?i:is|là|đúng là)\b\W*)?([A-Z])\b(?!')"
        ),
    ),
    (
        re.compile(r"^\W*([A-Z])\W*$"),  # nothing but a letter
        _REPEATED,
        re.compile(r"(?i:\b(?:so|thus|therefore|hence|vậy|nên|do đó))\W+(?:(?i:is|là)\W+)?([A-Z])\W*$"),
    ),
)
# "A car" has an article, "A because ..." has not.
_ARTICLE = re.compile(
    r"\s+(?!(?:because|since|as|is|due|for|with|correct|right|vì|do|bởi|là|đúng|nên|thì|và|hoặc|hay|or|and)\b)\w"
)
# "I would not choose B", "không chọn B"; "option B is wrong", "đáp án B sai", "B-road".
_NOT_BEFORE = re.compile(r"(?i:\b(?:not|never|neither|nor|cannot|không|chẳng|đừng|loại)\b|n't\b)[^.;!?\n]{0,30}$")
_NOT_AFTER = re.compile(
    r"-\w|[\s*]*(?:(?i:is|are|was|là)\s+)?(?i:not|incorrect|wrong|false|sai|không)\b(?!\s+(?i:phải|quan)\b)"
)
_OTHER_LETTER = re.compile(r"^\W*(?:(?i:or|and|hoặc|hay|và)\W+)?([A-Z])\b(?!\w)")


def parse_letter(text: str | None, num_choices: int) -> tuple[int | None, Status]:
    """Read the letter of a multiple-choice answer.

    Only capital letters count, so that an article is no answer. An explicit statement ("answer:
    B", "đáp án là B", ``<answer>B</answer>``) goes before a leading or concluding letter; rules of
    one rank that find different letters find nothing, and so does a letter that has no choice.
    The parser this replaces (huynhtuandat05december/demo) took the first a, b, c or d of any
    text, and "A" where there was none.

    Args:
        text: the model's text; None if the row could not be computed.
        num_choices: how many letters exist.

    Returns:
        (number of the choice, parsed), or (None, status).

    Example:
        >>> parse_letter("B. Đúng", 2), parse_letter("The correct answer is a green light so C.", 4)
        ((1, 'parsed'), (2, 'parsed'))
        >>> parse_letter("The correct answer is a green light", 4), parse_letter("Tôi không biết", 4)
        ((None, 'unparsed'), (None, 'refused'))
        >>> parse_letter("Answer: C", 2), parse_letter("A or B", 4), parse_letter("Answer: A car", 4)
        ((None, 'unparsed'), (None, 'unparsed'), (None, 'unparsed'))
    """
    if text is None:
        return None, "failed"
    text = unicodedata.normalize("NFC", text).strip()
    for rank in _LETTER_RULES:
        found: set[str] = set()
        for rule in rank:
            for match in rule.finditer(text):
                letter = next(g for g in match.groups() if g)
                rest = text[match.end(match.lastindex or 0) :]
                if (
                    "</" not in match.group()
                    and (
                        (letter == "A" and _ARTICLE.match(rest))  # "the answer is A car"
                        or _NOT_BEFORE.search(text[: match.start(match.lastindex or 0)])
                        or _NOT_AFTER.match(rest)
                    )
                ):
                    continue
                other = _OTHER_LETTER.match(rest)
                found |= {letter, *(other.groups() if other else ())}
                if rule is _REPEATED:  # several options repeated are no answer
                    found |= {o for o in _OPTION.findall(rest) if ord(o) - ord("A") < num_choices}
        if len(found) == 1:
            number = ord(found.pop()) - ord("A")
            return (number, "parsed") if number < num_choices else (None, "unparsed")
        if found:
            return None, "unparsed"
    return None, "refused" if _REFUSAL.search(text) else "unparsed"
