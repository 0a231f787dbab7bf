"""Scene description: prose, twelve driving parameters as JSON, a risk assessment.

After the BDD100K description project (SarveshBTelang), which published no metric and had no
validation split. What is compared is the normalised parameters; what could not be read is None.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, final

from dashvlm.config.imports import configurable
from dashvlm.data.clip import SPLITS, Clip, Observation, Sample
from dashvlm.errors import ConfigError
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.scene.evaluation import SCENE
from dashvlm.tasks.scene.reading import SCENES_ELSEWHERE
from dashvlm.text.parsing import Status, is_refusal
from dashvlm.text.scene_schema import FIELDS, SCHEMA
from dashvlm.text.scene_text import SECTIONS, TITLES, Annotation, compose, read_annotation

EVALUATIONS = (SCENE,)


@final
@configurable("task")
class SceneTask(Task):
    """Describe a scene in sections.

    Args:
        prompt: template.
        print_times: print each frame's age.
        question: replaces the built-in instruction where the clip brings none.
        sections: which of ``description, parameters, risk`` are asked for and taught, in this order.
        use_clip_question: ask the instruction of the dataset's rows instead of the built-in one.
    """

    name = "scene"
    evaluation = SCENE
    reading = SCENES_ELSEWHERE
    default_max_new_tokens = 512
    rewards: ClassVar = {"schema": 0.5, "fields": 2.0}
    labelled = "annotation"
    schema: ClassVar = SCHEMA

    def __init__(
        self,
        prompt: str,
        print_times: bool = True,
        question: str | None = None,
        sections: Sequence[str] = SECTIONS,
        use_clip_question: bool = False,
    ) -> None:
        unknown = [s for s in sections if s not in SECTIONS]
        if unknown or "parameters" not in sections:
            raise ConfigError(
                "task.sections needs parameters and may add description and risk", got=", ".join(sections),
                do=f"use a list of {', '.join(SECTIONS)}",
            )  # fmt: skip
        self.sections, self.use_clip_question = tuple(sections), use_clip_question
        super().__init__(prompt, print_times, question)

    def default_question(self) -> str:
        """The instruction with the sections that are asked for and the keys of the JSON."""
        titles = [TITLES[s] for s in self.sections]
        keys = ", ".join(FIELDS)
        if self.sections == ("parameters",):
            return f"Give the driving parameters of this scene as one JSON object with the keys {keys}."
        return (
            "Describe the scene from a driving and safety perspective in these sections: "
            f"{', '.join(titles)}. Say what matters for driving: vehicles, pedestrians, signs, lights, lanes, hazards. "
            f"The driving parameters are one JSON object with the keys {keys}. Do not mention pictures."
        )

    def messages(self, observation: Observation) -> list[dict[str, Any]]:
        """See :meth:`Task.messages`; the rows' own instruction only where it is asked for."""
        if not self.use_clip_question:
            observation = Observation(observation.frame_times_s)
        return super().messages(observation)

    def target(self, sample: Sample) -> dict[str, str] | None:
        """The normalised parameters of a usable annotation."""
        found = annotation_of(sample.clip)
        return dict(found.fields) if found is not None and found.usable else None

    def answer(self, sample: Sample) -> str:
        """The canonical text: cleaned prose, normalised parameters."""
        fields = need_target(self.target(sample), sample)
        found = annotation_of(sample.clip)
        assert found is not None
        return compose(found.sections, fields, self.sections)

    def parse(self, text: str | None, observation: Observation) -> tuple[dict[str, Any] | None, Status]:
        """Read parameters and prose; a text without any parameter is no answer."""
        if text is None:
            return None, "failed"
        found = read_annotation(text)
        if not found.fields:
            return None, "refused" if is_refusal(text) else "unparsed"
        return {"fields": dict(found.fields), "strict": found.strict, "sections": dict(found.sections)}, "parsed"

    def kind_of(self, sample: Sample) -> Any:
        """The risk."""
        return (self.target(sample) or {}).get("risk_factor")

    def partial_credit(self, value: Any, target: Any) -> float:
        """Share of the parameters that are right."""
        said = value["fields"] if value else {}
        return sum(said.get(name) == word for name, word in target.items()) / max(len(target), 1)

    def is_ambiguous(self, text: str) -> bool:
        """Whether a parameter is given twice."""
        return any(text.count(f'"{name}"') > 1 for name in FIELDS)

    def problem(self, clip: Clip) -> str | None:
        """Why an annotation cannot be taught."""
        found = annotation_of(clip)
        if found is None or found.usable:
            return None
        return "; ".join(found.problems) or "no parameters"

    def columns(self, sample: Sample) -> dict[str, Any]:
        """The reference's prose, for text metrics."""
        found = annotation_of(sample.clip)
        return {"reference": json.dumps(dict(found.sections)) if found is not None else None}

    def dataset_tables(self, clips: Sequence[Clip]) -> dict[str, list[dict[str, Any]]]:
        """Validity a split, the majority word of each parameter, and what is irregular."""
        read = [(c, a) for c in clips if (a := annotation_of(c)) is not None]
        splits = []
        for split in SPLITS:
            mine = [a for c, a in read if c.split == split]
            splits.append(
                {
                    "split": split, "annotated": len(mine), "valid as written": sum(a.strict for a in mine),
                    "valid after normalisation": sum(a.usable for a in mine),
                    "repaired": sum(bool(a.repairs) for a in mine),
                    "with problems": sum(bool(a.problems) for a in mine),
                }
            )  # fmt: skip
        fields = []
        for name in FIELDS:
            counts = Counter(a.fields[name] for _, a in read if name in a.fields)
            if counts:
                word, most = counts.most_common(1)[0]
                spread = ", ".join(f"{w} {n}" for w, n in counts.most_common(6))
                fields.append(
                    {"parameter": name, "majority": word, "share": round(most / counts.total(), 3), "words": spread}
                )
        notes = [
            {"clip": c.clip_id, "repaired": "; ".join(a.repairs), "problems": "; ".join(a.problems)}
            for c, a in read
            if a.problems or a.repairs
        ]
        # What could not be read comes first, then what was mended, then what is only remarkable.
        notes.sort(key=lambda row: ("JSON" not in row["problems"], "unquoted" not in row["repaired"]))
        tables: dict[str, list[dict[str, Any]]] = {"annotations": splits, "parameters after normalisation": fields}
        if notes:
            tables[f"{len(notes)} rows repaired or with problems{', the first 30' if len(notes) > 30 else ''}"] = notes[
                :30
            ]
        return tables


def annotation_of(clip: Clip) -> Annotation | None:
    """Read a clip's annotation; None without one."""
    text = clip.extra.get("annotation")
    return _read(str(text)) if text else None


@functools.lru_cache(maxsize=100_000)
def _read(text: str) -> Annotation:
    """Reading costs milliseconds and is asked for at each step."""
    return read_annotation(text)
