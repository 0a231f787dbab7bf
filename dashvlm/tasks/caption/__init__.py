"""Descriptions for blind pedestrians: mandatory positions, close objects first, then the scene.

After the BVPI project (adityaBS/roadscene-vlm-for-visually-impaired), whose presence rates were 1.0 because a
prefix was forced or a header added afterwards. Here a text is scored as written, and a forced prefix is named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

from dashvlm.config.imports import configurable
from dashvlm.config.rules import number, one_of
from dashvlm.data.clip import SPLITS, Clip, Observation, Sample
from dashvlm.data.sampling import stable_uniform
from dashvlm.errors import ConfigError
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.caption.evaluation import CAPTION
from dashvlm.tasks.caption.reading import TEXTS_ELSEWHERE
from dashvlm.text.navigation import (
    CAPTION_PROMPT,
    HEADERS,
    OBJECTS,
    PROMPT,
    Truth,
    cue_alone,
    parse_fields,
    response,
    with_cue,
)
from dashvlm.text.parsing import Status, is_refusal

STYLES = ("structured", "caption")


EVALUATIONS = (CAPTION,)


@final
@configurable("task")
class CaptionTask(Task):
    """Describe a picture for navigation.

    Args:
        prompt: template.
        print_times: print ages, where there are several frames.
        question: replaces the instruction where the clip brings none.
        style: ``structured``: header, nearby, far, context; ``caption``: the free caption alone.
        text_dropout: share of training samples that lose each labelled part (``Sidewalk: left.``) of what is
            taught. A part goes as a whole: the project's rule broke ``RoadVsSidewalk:`` into ``RoadVs``.
        dropped_parts: which parts may go: labels, or ``Context``.
        pairs: what preference training compares. ``given``: the ``chosen`` and ``rejected`` of the rows (the
            published pairs, whose better text is always the longer one); ``wrong_positions``: the clip's own
            positions and objects against those of another clip, alike in length on average.
    """

    name = "caption"
    evaluation = CAPTION
    reading = TEXTS_ELSEWHERE
    default_max_new_tokens = 256
    rewards: ClassVar = {"fields": 2.0}
    rules: ClassVar = {
        "task.style": one_of(*STYLES),
        "task.text_dropout": number(0, 1),
        "task.pairs": one_of("given", "wrong_positions"),
        **{f"data.options.{kind}_share": number(0, 1) for kind in ("caption", "navigation", "annotations")},
    }

    def __init__(
        self,
        prompt: str,
        print_times: bool = True,
        question: str | None = None,
        style: str = "structured",
        text_dropout: float = 0.0,
        dropped_parts: Sequence[str] = ("Sidewalk", "Road", "RoadVsSidewalk", "Nearby", "Far"),
        pairs: str = "given",
    ) -> None:
        known = [label for label, _ in HEADERS.values()] + ["Nearby", "Far", "Context"]
        if style not in STYLES or [p for p in dropped_parts if p not in known]:
            raise ConfigError(
                "task.style or task.dropped_parts is unknown", got=f"{style}, {', '.join(dropped_parts)}",
                do=f"styles: {', '.join(STYLES)}; parts: {', '.join(known)}",
            )  # fmt: skip
        self.pairs = pairs
        self.style, self.text_dropout, self.dropped_parts = style, float(text_dropout), tuple(dropped_parts)
        super().__init__(prompt, print_times, question)

    @classmethod
    def errors(cls, flat: Mapping[str, Any]) -> list[str]:
        """A free caption has nothing that could be rewarded; shares of styles make at most a whole."""
        captions, cues = (flat.get(f"data.options.{kind}_share") for kind in ("caption", "navigation"))
        if isinstance(captions, int | float) and isinstance(cues, int | float) and captions + cues > 1 + 1e-9:
            return [f"data.options.navigation_share={cues}: with caption_share={captions} that is more than all rows"]
        if flat.get("objective.name") == "grpo" and flat.get("task.style") == "caption":
            return ["task.style=caption: nothing in a free caption is rewarded; use task.style=structured"]
        return []

    def default_question(self) -> str:
        """The published instruction, or the short one for free captions."""
        return PROMPT if self.style == "structured" else CAPTION_PROMPT

    def target(self, sample: Sample) -> dict[str, Any] | None:
        """Mandatory fields and objects; for free captions only that there is a reference."""
        if self.style_of(sample.clip) == "caption":  # a free caption is not asked for fields or segments
            return {} if sample.clip.extra.get("caption") else None
        if self.style_of(sample.clip) == "cue":
            return {} if truth_of(sample.clip) else None
        found = truth_of(sample.clip)
        return None if found is None else found.to_dict()

    def style_of(self, clip: Clip) -> str:
        """A clip's own style in a mix (``structured``, ``caption`` or ``cue``), else the task's."""
        return str(clip.extra.get("style") or self.style)

    def answer(self, sample: Sample) -> str:
        """The structured description, or the caption."""
        need_target(self.target(sample), sample)
        return str(self.columns(sample)["reference"])

    def training_answer(self, sample: Sample, epoch: int) -> str:
        """The answer without the parts that are dropped in this pass over the data."""
        text = self.answer(sample)
        if not self.text_dropout or self.style_of(sample.clip) != "structured":
            return text
        kept = [
            part
            for label, part in parts_of(text)
            if label not in self.dropped_parts
            or stable_uniform(epoch, "text dropout", sample.sample_id, label) >= self.text_dropout
        ]
        return " ".join(kept) if kept else text

    def parse(self, text: str | None, observation: Observation) -> tuple[dict[str, Any] | None, Status]:
        """Read the mandatory fields; a free caption is its own answer."""
        if text is None:
            return None, "failed"
        if self.style == "caption":
            return ({"text": text}, "parsed") if text.strip() else (None, "unparsed")
        found = parse_fields(text)
        if not found:
            return None, "refused" if is_refusal(text) else "unparsed"
        return dict(found), "parsed"

    def pair(self, sample: Sample) -> tuple[str, str] | None:
        """See :class:`CaptionTask`."""
        if self.pairs == "given":
            return super().pair(sample)
        truth, other = truth_of(sample.clip), sample.clip.extra.get("other_navigation")
        if truth is None or not other:
            return None
        # Without the caption, which states positions of its own.
        return response(truth, ""), response(_truth(other), "")

    def prepared(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """With ``pairs=wrong_positions`` each clip gets the annotation of another clip of its split.

        Every annotation is the wrong one exactly once, so a reader that sees no picture cannot tell wrong
        from right: not by length, nor by how often a position occurs.
        """
        if self.pairs == "given":
            return clips
        out = []
        for split in SPLITS:
            mine = sorted(
                (c for c in clips if c.split == split and truth_of(c) is not None),
                key=lambda c: stable_uniform(0, "other", c.clip_id),
            )
            others = {c.clip_id: mine[(i + 1) % len(mine)] for i, c in enumerate(mine)}
            for clip in (c for c in clips if c.split == split):
                other = truth_of(others[clip.clip_id]) if clip.clip_id in others else None
                truth = truth_of(clip)
                if truth is not None and other is not None and other.fields != truth.fields:
                    clip = replace(clip, extra={**clip.extra, "other_navigation": other.to_dict()})
                out.append(clip)
        return out

    def kind_of(self, sample: Sample) -> Any:
        """The side that the sidewalk is on."""
        return (self.target(sample) or {}).get("sidewalk_pos")

    def partial_credit(self, value: Any, target: Any) -> float:
        """Share of the mandatory positions that are right."""
        named = [name for name in HEADERS if name in target]
        return sum((value or {}).get(name) == target[name] for name in named) / max(len(named), 1)

    def is_ambiguous(self, text: str) -> bool:
        """Whether a position is given twice."""
        return any(len(re.findall(rf"\b{label}\s*:", text, re.IGNORECASE)) > 1 for label, _ in HEADERS.values())

    def columns(self, sample: Sample) -> dict[str, Any]:
        """The text that was to be written."""
        extra, found = sample.clip.extra, truth_of(sample.clip)
        caption = str(extra.get("caption") or "")
        style = self.style_of(sample.clip)
        if style == "cue" and found is not None:
            return {"reference": cue_alone(found)}
        text = (
            caption if style == "caption" or found is None else str(extra.get("response") or response(found, caption))
        )
        return {"reference": (with_cue(text, found) if extra.get("with_cue") and found else text) or None}

    def baseline(self, train: Sequence[Sample], scored: Sequence[Sample]) -> dict[str, list[Any]]:
        """The training reference that occurs most often, for every picture; none where no two are equal."""
        told = Counter(str(r) for s in train if (r := self.columns(s)["reference"]))
        usual, times = told.most_common(1)[0] if told else ("", 0)
        return {"usual_reference": [usual] * len(scored)} if times > 1 else {}

    def dataset_tables(self, clips: Sequence[Clip]) -> dict[str, list[dict[str, Any]]]:
        """Fields, objects near and far, contradictions between caption and annotation, a split."""
        splits, fields, objects = [], [], []
        for split in SPLITS:
            mine = [c for c in clips if c.split == split]
            truths = [t for c in mine if (t := truth_of(c)) is not None]
            splits.append(
                {
                    "split": split, "captions": sum(bool(c.extra.get("caption")) for c in mine),
                    "annotated": len(truths), "nothing near": sum(not t.near for t in truths),
                    "caption contradicts annotation": sum(bool(c.extra.get("contradictions")) for c in mine),
                    "annotation in the prompt": sum(bool(c.extra.get("annotation_in_prompt")) for c in mine),
                    "free caption": sum(c.extra.get("style") == "caption" for c in mine),
                    "cue alone": sum(c.extra.get("style") == "cue" for c in mine),
                }
            )  # fmt: skip
            for name in HEADERS:
                counts = Counter(t.fields[name] for t in truths)
                if counts:
                    word, most = counts.most_common(1)[0]
                    words = ", ".join(f"{w} {n}" for w, n in counts.most_common())
                    share = round(most / len(truths), 3)
                    fields.append({"split": split, "field": name, "majority": word, "share": share, "words": words})
            if truths:
                near, far = ({n: sum(bool(p.get(n)) for p in parts) for n in OBJECTS}
                             for parts in ([t.near for t in truths], [t.far for t in truths]))  # fmt: skip
                objects.append({"split": split, **{n: f"{near[n]} / {far[n]}" for n in OBJECTS}})
        tables: dict[str, list[dict[str, Any]]] = {"captions and annotations": splits}
        pairs = [(str(c.extra["chosen"]), str(c.extra["rejected"])) for c in clips if "rejected" in c.extra]
        if pairs:
            tables["preference pairs as given"] = [pair_lengths(pairs)]
        if fields:
            tables |= {"mandatory fields": fields, "objects, near / far": objects}
        return tables


def truth_of(clip: Clip) -> Truth | None:
    """A clip's annotation, or None."""
    found = clip.extra.get("navigation")
    return _truth(found) if found else None


def _truth(found: Mapping[str, Any]) -> Truth:
    near, far = ({k: tuple(v) for k, v in found[part].items()} for part in ("near", "far"))
    return Truth(found["sidewalk_pos"], found["road_pos"], near, far)


def parts_of(text: str) -> list[tuple[str, str]]:
    """Cut a structured description into its labelled parts.

    Example:
        >>> parts_of("Sidewalk: left. Road: front. Context: Clear.")
        [('Sidewalk', 'Sidewalk: left.'), ('Road', 'Road: front.'), ('Context', 'Context: Clear.')]
    """
    labels = [label for label, _ in HEADERS.values()] + ["Nearby", "Far", "Navigation", "Context"]
    starts: list[tuple[int, str]] = []
    position = 0
    last = text.find(" Context: ")
    for label in labels:  # they stand in this order; what a caption says later is no label
        end = len(text) if label == "Context" or last < 0 else last
        place = 0 if text.startswith(f"{label}: ") and not starts else text.find(f" {label}: ", position, end)
        if place >= 0:
            starts.append((place + (place > 0), label))
            position = place + 1
    ends = [s for s, _ in starts[1:]] + [len(text)]
    return [(label, text[start:end].strip()) for (start, label), end in zip(starts, ends, strict=True)]


def pair_lengths(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What a reader of lengths alone knows about pairs of a better and a worse text."""
    longer = [len(better) > len(worse) for better, worse in pairs]
    ratio = sum(len(better.split()) for better, _ in pairs) / max(sum(len(worse.split()) for _, worse in pairs), 1)
    return {
        "pairs": len(pairs), "better is longer": f"{sum(longer)} ({sum(longer) / len(pairs):.0%})",
        "words better / worse": round(ratio, 2),
        "better ends with worse": sum(better.endswith(worse) for better, worse in pairs),
        "what": "length alone decides them: use task.pairs=wrong_positions" if sum(longer) > 0.9 * len(pairs) else "",
    }  # fmt: skip
