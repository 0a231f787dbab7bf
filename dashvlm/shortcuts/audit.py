"""Shortcut audit: readers that see no pixels, fitted on the training split and scored on the test split.

A reader that does better than chance has found something that is no evidence: the time of the anchor, the
name of the file, its size, the wording of the question. Each reader's interval is clustered by recording and
widened for their number, so that a clean dataset fails about once in twenty. Near-duplicates across splits are
found by a perceptual hash of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from scipy.fft import dctn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from dashvlm.data.clip import Clip, Sample
from dashvlm.data.frames import FrameStore
from dashvlm.data.pictures import size_of
from dashvlm.errors import DataError
from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import RESAMPLES, Estimate, group_weights

Array = NDArray[np.float64]
LEVEL = 0.05
"""Chance that a clean dataset fails, over all readers together."""
FEWEST = 12
"""Samples that each split needs for a reader."""


@dataclass(frozen=True)
class ShortcutProbe:
    """What a reader without pixels reaches.

    Attributes:
        name: what it reads.
        what: the same in words.
        auc: ROC AUC on the test split (mean over classes against the rest), interval clustered by group.
        half_width: of the interval before it is cut at 0 and 1.
    """

    name: str
    what: str
    auc: Estimate
    half_width: float = 0.0

    @property
    def verdict(self) -> str:
        """Whether it fails; with an interval wider than a quarter each way it cannot tell."""
        return "FAILS" if self.fails else "passes" if self.half_width <= 0.25 else "cannot tell: too few groups"

    @property
    def fails(self) -> bool:
        """Whether the interval clears chance."""
        return bool(self.auc.low > 0.5)


def audit(
    samples: Mapping[Any, Sequence[Sample]], classes: Callable[[Sample], Any], store: FrameStore, seed: int = 0
) -> list[ShortcutProbe]:
    """Fit every reader on the training samples and score it on the test samples.

    Args:
        samples: ``train`` and ``test``.
        classes: what is to be told; None leaves a sample out.
        store: knows the videos' indices.
        seed: of the bootstrap.

    Returns:
        A reader each; empty if a split has fewer than :data:`FEWEST` samples or one class.
    """
    if not samples.get("train") or not samples.get("test"):
        return []
    known = {
        split: [s for s in samples[split] if "failed" not in s.clip.extra and classes(s) is not None]
        for split in ("train", "test")
    }
    truth = {split: np.array([str(classes(s)) for s in found]) for split, found in known.items()}
    if min(len(t) for t in truth.values()) < FEWEST or min(len(set(t)) for t in truth.values()) < 2:
        return []
    names = sorted(set(truth["train"]) & set(truth["test"]))
    # With two options the third letter is never right: a class is told apart among samples that could have it.
    count = np.array([len(s.clip.extra.get("choices") or ()) for s in known["test"]])
    weights = group_weights([s.clip.group for s in known["test"]], RESAMPLES * 4, seed)
    groups = len({s.clip.group for s in known["test"]})
    order = {s.sample_id: i / len(found) for found in known.values() for i, s in enumerate(found)}
    facts = {s.clip.path: _facts(s.clip, store) for found in known.values() for s in found}
    numbers: dict[str, tuple[str, Callable[[Sample], Sequence[float]]]] = {
        "anchor": (
            "times of the frames, from the clip's start",
            lambda s: [s.times_s[0], s.times_s[-1], s.reference_s],
        ),
        "last_frame": ("how long the clip goes on after the last frame", lambda s: [s.clip.duration_s - s.times_s[-1]]),
        "frame_count": ("different and repeated frames", lambda s: [len(set(s.times_s)), s.num_padded]),
        "duration": ("the clip's length", lambda s: [s.clip.duration_s]),
        "file_size": ("bytes", lambda s: [facts[s.clip.path][0]]),
        "bitrate": ("bytes a second", lambda s: [facts[s.clip.path][0] / s.clip.duration_s]),
        "resolution": ("width, height, frame rate", lambda s: [*facts[s.clip.path][1:3], round(s.clip.fps, 2)]),
        "encoding": ("keyframes a second", lambda s: [facts[s.clip.path][3] / s.clip.duration_s]),
        "row_order": ("place in the list", lambda s: [order[s.sample_id]]),
    }
    if any(len({s.clip.clip_id for s in found}) < len(found) for found in known.values()):  # several anchors a clip
        numbers["position"] = (
            "the anchor's place in the clip, from 0 to 1", lambda s: [s.times_s[-1] / max(s.clip.duration_s, 1e-9)],
        )  # fmt: skip
    texts: dict[str, tuple[str, Callable[[Sample], str], dict[str, Any]]] = {
        "file_name": ("letters and digits of the name", lambda s: Path(s.clip.path).stem, _LETTERS),
        "folder": ("the folders above it", lambda s: "/".join(Path(s.clip.path).parts[-4:-1]), _LETTERS),
        "question": ("words of question and choices", _question, {"token_pattern": r"\w+"}),
    }
    readers = []
    for name, (what, number) in numbers.items():
        x = {k: np.nan_to_num(np.array([list(number(s)) for s in v], dtype=np.float64)) for k, v in known.items()}
        readers.append(
            _reader(name, what, _numeric(x, truth["train"], names), truth["test"], names, weights, count, groups)
        )
    for name, (what, text, options) in texts.items():
        words = {k: [text(s) for s in v] for k, v in known.items()}
        score = _worded(words, truth["train"], names, options)
        readers.append(_reader(name, what, score, truth["test"], names, weights, count, groups))
    return readers


def near_duplicates(
    samples: Mapping[str, Sequence[Sample]], store: FrameStore, most: float = 0.08
) -> list[tuple[str, str, float]]:
    """Clips of different splits whose frames look the same.

    Args:
        samples: split -> samples.
        store: decodes.
        most: share of the hash's bits that may differ (765 bits: a cosine-transform hash of the first, the
            middle and the last frame).

    Returns:
        (clip of a later split, clip of an earlier split, share of bits that differ), the closest first.
    """
    hashes: dict[str, list[tuple[str, NDArray[np.bool_]]]] = {}
    for split, found in samples.items():
        hashes[split] = []
        for sample in {s.clip.path: s for s in found}.values():
            if "failed" in sample.clip.extra:
                continue
            picked = [sample.times_s[0], sample.times_s[len(sample.times_s) // 2], sample.times_s[-1]]
            try:
                frames, _ = store.frames(Path(sample.clip.path), picked)
            except DataError:
                continue
            hashes[split].append((sample.clip.clip_id, np.concatenate([_picture_hash(f) for f in frames])))
    out = []
    splits = [s for s in ("train", "val", "test") if hashes.get(s)]
    for place, later in enumerate(splits):
        for earlier in splits[:place]:
            base = np.stack([h for _, h in hashes[earlier]])
            for clip_id, mine in hashes[later]:
                apart = (base != mine).mean(1)
                nearest = int(apart.argmin())
                if apart[nearest] <= most:
                    out.append((clip_id, hashes[earlier][nearest][0], float(apart[nearest])))
    return sorted(out, key=lambda row: row[2])


_LETTERS = {"analyzer": "char", "ngram_range": (1, 4)}


def _facts(clip: Clip, store: FrameStore) -> tuple[float, float, float, float]:
    """Bytes, width, height and number of keyframes."""
    path = Path(clip.path)
    index = store.index(path)
    return float(size_of(path)), float(index.width), float(index.height), float(len(index.keyframes))


def _question(sample: Sample) -> str:
    extra = sample.clip.extra
    return " ".join([str(extra.get("question") or ""), *map(str, extra.get("choices") or ())])


def _numeric(x: Mapping[str, Array], truth: NDArray[Any], names: Sequence[str]) -> Array:
    """Probabilities [N, C] of the mean of a line and a small tree: leaks may be a slope or a value."""
    fewest = max(3, len(truth) // 40)
    models: list[Any] = [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        DecisionTreeClassifier(max_depth=3, min_samples_leaf=fewest, random_state=0),
    ]
    found = []
    for model in models:
        model.fit(x["train"], truth)
        places = [list(model.classes_).index(n) for n in names]
        found.append(model.predict_proba(x["test"])[:, places])
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def _worded(
    words: Mapping[str, Sequence[str]], truth: NDArray[Any], names: Sequence[str], options: Mapping[str, Any]
) -> Array:
    """Probabilities [N, C] of a linear reader of words or letters."""
    if not any(w.strip() for w in words["train"]) or len(set(words["train"])) == 1:
        return np.zeros((len(words["test"]), len(names)))
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, **options), LogisticRegression(max_iter=1000, C=10.0))
    model.fit(list(words["train"]), truth)
    places = [list(model.classes_).index(n) for n in names]
    return np.asarray(model.predict_proba(list(words["test"]))[:, places], dtype=np.float64)


def _reader(
    name: str, what: str, score: Array, truth: NDArray[Any], names: Sequence[str], weights: Array,
    num_choices: NDArray[np.int_], num_groups: int, num_readers: int = 12,
) -> ShortcutProbe:  # fmt: skip
    """Score a reader: the mean over classes of one against the rest, among samples with as many choices.

    The interval is the bootstrap's, made wider for few groups: its half-width times the ratio of
    Student's to the normal quantile, symmetric about the value.
    """
    strata = [num_choices == c for c in np.unique(num_choices)]

    def auc(weight: Array) -> Array:
        values, sizes = [], []
        for stratum in strata:
            for i, name in enumerate(names):
                is_class = (truth[stratum] == name).astype(np.float64)
                if 0 < is_class.sum() < len(is_class):
                    values.append(F.roc_auc(is_class, score[stratum, i], weight[:, stratum]))
                    sizes.append(float(is_class.sum()))
        kept = np.nan_to_num(np.array(values), nan=0.5)
        return np.asarray(np.average(kept, axis=0, weights=sizes), dtype=np.float64)

    value, drawn = float(auc(np.ones((1, len(truth))))[0]), auc(weights)
    half = float(drawn.std()) * float(stats.t.ppf(1 - LEVEL / num_readers, max(num_groups - 1, 2)))
    return ShortcutProbe(name, what, Estimate(value, max(0.0, value - half), min(1.0, value + half)), half)


def _picture_hash(frame: NDArray[np.uint8], size: int = 16) -> NDArray[np.bool_]:
    """Which low frequencies of the grey picture are above their median, [255]; encoders leave these alone."""
    grey = np.asarray(Image.fromarray(frame).convert("L").resize((2 * size, 2 * size), Image.Resampling.BOX))
    low = dctn(grey.astype(np.float64), norm="ortho")[:size, :size].ravel()[1:]
    return np.asarray(low > np.median(low))
