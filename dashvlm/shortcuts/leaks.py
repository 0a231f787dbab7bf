"""What gives the class away in rationales that is no evidence: length, frames, phrasing, words.

A model that learns rationales learns these too. In the published GPT-4o rationales negatives were
written from one picture and positives from five, and say so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dashvlm.labels.label_file import Label, read_labels, states_outcome
from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights

LEVEL = 0.05
"""Chance that a clean file fails, over all probes together."""
_FUNCTION_WORDS = """
a an the this that these those there here it its they them their we our you your i is are was were be been
being has have had do does did can could may might must shall should will would and or but so if then than as
at by for from in into of off on onto out over to under up with within without about above after again all
any both each few more most no nor not only other same some such too very just also however therefore thus
while when where which who whose what how why
"""
_OUTCOME_WORDS = re.compile(
    r"\b(?:yes|no|not|collision\w*|collid\w*|crash\w*|accident\w*|impact\w*|threat\w*|risk\w*|danger\w*|safe\w*|"
    r"hazard\w*|likely|unlikely|imminent\w*|immediate\w*|potential\w*|avoid\w*)\b",
    re.IGNORECASE,
)
_ONE = re.compile(
    r"\b(?:(?:this|the|single|one|only one|provided) (?:image|frame|picture|photo)|snapshot)\b", re.IGNORECASE
)
_MANY = re.compile(r"\b(?:images|frames|pictures|photos|sequence|series|subsequent|frame \d)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Probe:
    """How well something that is no evidence tells the class.

    Attributes:
        name: ``length``, ``frames``, ``phrasing`` or ``words``.
        what: what it looks at.
        auc: ROC AUC on rationales it was not fitted on, with its interval.
        p: chance of so high a value if nothing is given away; nan if there is nothing to read.
        telling: the words that weigh most for yes and for no.
    """

    name: str
    what: str
    auc: Estimate
    p: float
    telling: str = ""

    @property
    def leaks(self) -> bool:
        """Whether it is better than chance, at :data:`LEVEL` for the four probes together."""
        return self.p < LEVEL / 4

    @property
    def verdict(self) -> str:
        """The same in words; a reader that found nothing to read cannot tell."""
        return "gives the class away" if self.leaks else "clean" if self.p == self.p else "nothing to read"


def _nothing(name: str, what: str) -> Probe:
    """A probe that found nothing to read."""
    return Probe(name, what, Estimate(0.5, 0.5, 0.5), float("nan"))


def probe_labels(labels: Sequence[Label], seed: int = 0) -> list[Probe]:
    """Fit the probes on the rationales of one mode.

    Args:
        labels: of labelled clips; others are left out.
        seed: of the folds and the bootstrap.

    Returns:
        A probe each; empty if there are fewer than five clips of a class.
    """
    known = [label for label in labels if label.label is not None and label.reasoning.strip()]
    target = np.array([label.label for label in known])
    if min((target == 1).sum(), (target == 0).sum(), 10**9) < 5:
        return []
    texts = [label.reasoning for label in known]
    plain = [_OUTCOME_WORDS.sub(" ", text) for text in texts]
    numbers = [("length", "characters, words, sentences, lines", _lengths(texts))]
    frames, what = _frames(known), "one picture or several, as the text says it"
    if any(label.num_frames is not None for label in known):
        what = "pictures that were sent, and what the text says"
    probes = [_numeric(name, about, x, target, seed) for name, about, x in [*numbers, ("frames", what, frames)]]
    probes.append(_words("phrasing", "function words and punctuation", plain, target, seed, _FUNCTION_WORDS.split()))
    probes.append(_words("words", "all words but those of the outcome", plain, target, seed, None))
    return probes


def outcome_statements(labels: Sequence[Label]) -> list[tuple[str, str]]:
    """Clips whose rationale repeats the outcome, with the phrase."""
    found = [(label.clip_id, states_outcome(label.reasoning)) for label in labels]
    return [(clip, phrase) for clip, phrase in found if phrase]


def leak_rows(labels: Sequence[Label], mode: str) -> list[dict[str, str]]:
    """The probes of one mode as rows of a table, and how many rationales repeat the outcome."""
    rows = [
        {"mode": mode, "probe": p.name, "what": p.what, "ROC AUC": str(p.auc),
         "verdict": p.verdict, "words": p.telling}
        for p in probe_labels(labels)
    ]  # fmt: skip
    stated = outcome_statements(labels)
    if stated:
        first = ", ".join(f"{clip}: {phrase!r}" for clip, phrase in stated[:3])
        rows.append({"mode": mode, "probe": "outcome", "what": "rationales that repeat it", "ROC AUC": "",
                     "verdict": f"{len(stated)} of {len(labels)}", "words": first})  # fmt: skip
    return rows


def label_alarms(path: str, mode: str | None) -> list[str]:
    """Say for a run that learned from a label file what in it gives the class away."""
    file = read_labels(Path(path))
    modes = sorted({label.mode for label in file.labels}, reverse=True)
    mine = [label for label in file.labels if label.mode == (mode or modes[0])]
    return [
        f"the rationales it learned from give the class away by {p.name} alone: ROC AUC {p.auc}"
        for p in probe_labels(mine)
        if p.leaks and p.name != "words"
    ]


def _lengths(texts: Sequence[str]) -> NDArray[np.float64]:
    rows = [[len(t), len(t.split()), len(re.findall(r"[.!?](?:\s|$)", t)), t.count("\n")] for t in texts]
    return np.log1p(np.array(rows, dtype=np.float64))


def _frames(labels: Sequence[Label]) -> NDArray[np.float64]:
    rows = []
    for label in labels:
        one, many = len(_ONE.findall(label.reasoning)), len(_MANY.findall(label.reasoning))
        rows.append([one > 0, many > 0, one, many, -1 if label.num_frames is None else label.num_frames])
    return np.array(rows, dtype=np.float64)


def _numeric(name: str, what: str, x: NDArray[np.float64], target: NDArray[np.int_], seed: int) -> Probe:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if len(np.unique(x, axis=0)) == 1:
        return _nothing(name, what)
    return Probe(name, what, *_auc(model, x, target, seed))


def _words(
    name: str, what: str, texts: Sequence[str], target: NDArray[np.int_], seed: int, vocabulary: Sequence[str] | None
) -> Probe:
    pattern = r"\w+|[^\w\s]" if vocabulary else r"[^\W\d_]{2,}"
    allowed = [*vocabulary, *"*-:;,.()#!?\"'"] if vocabulary else None
    counts = CountVectorizer(
        token_pattern=pattern, vocabulary=allowed, min_df=1 if vocabulary else min(5, len(texts) // 10 + 1)
    )
    model = make_pipeline(counts, TfidfTransformer(sublinear_tf=True), LogisticRegression(max_iter=2000))
    try:
        read = counts.fit_transform(texts)
        if len(np.unique(read.toarray(), axis=0)) == 1:  # no word, or the same ones everywhere
            return _nothing(name, what)
        auc, p = _auc(model, list(texts), target, seed)
    except ValueError:  # no word occurs often enough
        return _nothing(name, what)
    model.fit(list(texts), target)
    names, weight = model[0].get_feature_names_out(), model[-1].coef_[0]
    order = np.argsort(weight)
    telling = f"yes: {' '.join(names[i] for i in order[::-1][:5])}; no: {' '.join(names[i] for i in order[:5])}"
    return Probe(name, what, auc, p, telling)


def _auc(model: Any, x: Any, target: NDArray[np.int_], seed: int) -> tuple[Estimate, float]:
    """AUC of a reader fitted on one half and asked about the other, both ways, and a p-value.

    The rank test is exact for each half, since the reader has not seen it; the smaller p of the two is
    doubled. A cross-validated score has no such guarantee: folds share training rows.
    """
    order = np.random.default_rng(seed).permutation(len(target))
    by_class = [order[target[order] == c] for c in (0, 1)]
    first = np.sort(np.concatenate([part[: len(part) // 2] for part in by_class]))
    second = np.setdiff1d(np.arange(len(target)), first)
    score, values, ps = np.zeros(len(target)), [], []
    for fitted, asked in ((first, second), (second, first)):
        model.fit(_take(x, fitted), target[fitted])
        score[asked] = model.predict_proba(_take(x, asked))[:, 1]
        truth = target[asked]
        found = stats.mannwhitneyu(score[asked][truth == 1], score[asked][truth == 0], alternative="greater")
        ps.append(float(found.pvalue))
        values.append(float(F.roc_auc(truth.astype(np.float64), score[asked], np.ones(len(truth)))))
    weights = group_weights([str(i) for i in range(len(target))], RESAMPLES, seed)
    halves = [F.roc_auc(target[h].astype(np.float64), score[h], weights[:, h]) for h in (first, second)]
    return estimate(float(np.mean(values)), np.mean(halves, axis=0)), min(1.0, 2 * min(ps))


def _take(x: Any, rows: NDArray[np.int_]) -> Any:
    return x[rows] if isinstance(x, np.ndarray) else [x[i] for i in rows]
