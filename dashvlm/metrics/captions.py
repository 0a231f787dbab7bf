"""Caption metrics over a whole set: BLEU, METEOR, ROUGE-L, CIDEr, SPICE, lengths.

Scorers are pycocoevalcap's; definitions and published values they give back are in docs/captions.md.
All depend on the set (CIDEr's weights come from its references), so they are never averaged over parts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dashvlm.metrics.java import Unavailable, meteor, one_line, ptb_tokenize, spice

RULES = ("none", "chat", "echo", "openflamingo")
"""Ways to clean a text, see :func:`clean`."""
OF_WORDS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR", "SPICE")
"""What the metrics' own tokeniser, a Java program, decides: absent without it."""
NOT_ASKED = "not asked for (spice=true)"
_TURN = re.compile(r"assistant[^\S\n]*\n")
_CUTS = ("Assistant:", "A:", "\n\n", "<div", "<ul", "<li")


@dataclass(frozen=True)
class CaptionScores:
    """Caption metrics of one set.

    Attributes:
        values: metric -> value.
        each: metric -> a value a caption, where the metric has one.
        unavailable: metric -> why there is no value.
        cleaned: how many predictions the cleaning rule changed.
        rule: the rule.
    """

    values: Mapping[str, float]
    each: Mapping[str, Sequence[float]]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    cleaned: int = 0
    rule: str = "none"


def clean(text: str, rule: str) -> str:
    """Apply a published cleaning rule to a prediction.

    Args:
        text: the prediction.
        rule: ``chat``: keep what is behind the first ``Assistant:`` (SmolVLM's files echo the chat);
            ``echo``: keep what is behind the last line ``assistant`` (a decoded chat of Llama or Qwen);
            ``openflamingo``: keep what is before the first ``Assistant:``, ``A:``, empty line or HTML list.

    Example:
        >>> clean("User: hi Assistant: A path.", "chat"), clean("A path. Assistant: more", "openflamingo")
        ('A path.', 'A path.')
    """
    if rule == "chat" and "Assistant:" in text:
        return text.split("Assistant:", 1)[1].strip()
    if rule == "echo":
        return _TURN.split(text)[-1].strip()
    if rule == "openflamingo":
        for cut in _CUTS:
            if cut in text:
                text = text.split(cut, 1)[0].strip()
    return text


def rule_for(texts: Sequence[str]) -> str:
    """Choose ``chat`` or ``echo`` if most predictions repeat their prompt, else ``none``."""
    most = len(texts) / 2
    if sum("Assistant:" in t for t in texts) > most:
        return "chat"
    return "echo" if sum(bool(_TURN.search(t)) for t in texts) > most else "none"


def caption_scores(
    references: Sequence[str], texts: Sequence[str], rule: str = "none", with_spice: bool = False
) -> CaptionScores:
    """Score captions against one reference each.

    Args:
        references: one a picture.
        texts: predictions in the same order; empty ones are legal and score 0.
        rule: see :func:`clean`; ``auto`` chooses.
        with_spice: SPICE takes a third of a second a caption.

    Raises:
        ValueError: if the lists differ in length or are empty.
    """
    if len(references) != len(texts) or not texts:
        raise ValueError(f"as many references as texts are needed, got {len(references)} and {len(texts)}")
    rule = rule_for(texts) if rule == "auto" else rule
    said = [one_line(clean(t, rule)) for t in texts]
    gold = [one_line(t) for t in references]
    unavailable: dict[str, str] = {}
    values: dict[str, float] = {}
    each: dict[str, Sequence[float]] = {}
    gold_words: list[str] = []
    said_words: list[str] = []
    try:
        words = ptb_tokenize([*gold, *said])
    except Unavailable as error:  # other words make slightly other numbers under the same names
        unavailable |= dict.fromkeys(OF_WORDS, str(error))
    else:
        gold_words, said_words = words[: len(gold)], words[len(gold) :]
        values, each = overlap_scores(gold_words, said_words)  # type: ignore[assignment]
    for name, wanted, call in (
        ("METEOR", True, functools.partial(meteor, gold_words, said_words)),
        ("SPICE", with_spice, functools.partial(spice, gold, said)),
    ):
        if wanted and name not in unavailable:
            try:
                values[name], each[name] = call()
            except Unavailable as error:
                unavailable[name] = str(error)
    if not with_spice:
        unavailable.setdefault("SPICE", NOT_ASKED)
    values["avg_prediction_length"] = float(np.mean([len(t.split()) for t in texts]))
    values["avg_target_length"] = float(np.mean([len(t.split()) for t in references]))
    changed = sum(clean(t, rule) != t for t in texts)
    return CaptionScores(values, each, unavailable, changed, rule)


def overlap_scores(gold: Sequence[str], said: Sequence[str]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """BLEU-1 to 4 (corpus), ROUGE-L and CIDEr of tokenised texts."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references, texts = {i: [t] for i, t in enumerate(gold)}, {i: [t] for i, t in enumerate(said)}
    bleu, _ = Bleu(4).compute_score(references, texts, verbose=0)
    rouge, rouges = Rouge().compute_score(references, texts)
    cider, ciders = Cider().compute_score(references, texts)
    values = {f"BLEU-{n + 1}": float(b) for n, b in enumerate(bleu)}
    values |= {"ROUGE-L": float(rouge), "CIDEr": float(cider)}
    return values, {"ROUGE-L": [float(v) for v in rouges], "CIDEr": [float(v) for v in ciders]}
