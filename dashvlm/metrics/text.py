"""Overlap of texts with a reference: BLEU and ROUGE-L through pycocoevalcap, without Java.

Words are runs of letters and digits in lower case; captions have their own tokeniser and metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def overlap(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return corpus BLEU-4 and mean ROUGE-L; empty without texts.

    Example:
        >>> overlap(["the light is red"], ["The light is red."])["rouge_l"]
        1.0
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    if not texts:
        return {}
    gold = {i: [_words(t)] for i, t in enumerate(references)}
    said = {i: [_words(t)] for i, t in enumerate(texts)}
    bleu, _ = Bleu(4).compute_score(gold, said, verbose=0)
    rouge, _ = Rouge().compute_score(gold, said)
    return {"bleu_4": float(bleu[3]), "rouge_l": float(rouge)}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
