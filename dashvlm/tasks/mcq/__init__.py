"""Multiple choice about a driving clip, in Vietnamese or English, after the RoadBuddy challenge.

The project this comes from (huynhtuandat05december/demo) took "A" for every failure and scored on
videos that it had trained on. Here letters are scored from the logits, all in one forward pass and
only those that exist; a text that is no answer is None; the submission alone may fall back.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd

from dashvlm.config.imports import configurable
from dashvlm.config.rules import flag, one_of
from dashvlm.data.clip import SPLITS, Clip, Observation, Sample
from dashvlm.errors import ConfigError
from dashvlm.safety.plaintext import cells
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.mcq.evaluation import CHOICE
from dashvlm.tasks.mcq.metrics import said_choice
from dashvlm.tasks.mcq.reading import LETTERS_ELSEWHERE
from dashvlm.text.parsing import Status, parse_letter

LETTERS = ("A", "B", "C", "D")
# Letters that Vietnamese has and English has not; tone marks are looked for after decomposition.
_VIETNAMESE = set("ăâđêôơư")
_TONES = {"\u0300", "\u0301", "\u0303", "\u0309", "\u0323"}


EVALUATIONS = (CHOICE,)


@final
@configurable("task")
class MCQTask(Task):
    """Which option is right?

    Args:
        prompt: ``full`` (instructions, ages of the frames) or ``simple``; with one frame both speak of a picture.
        print_times: print each frame's age (``full`` only).
        question: asked where the clip brings none.
        language: ``vi``, ``en``, or ``auto`` for the question's own.
        answer_with: ``letter``: teach and score letters; ``text``: teach the option's text and score
            each option by its mean log-probability a token.
        reorder: score every rotation of the options and average, which removes a preference for a place.
        submit: ``scores`` or ``text``: what ``submission.csv`` is made from.
        fallback: letter in ``submission.csv`` for rows without an answer; counted.
    """

    name = "mcq"
    evaluation = CHOICE
    reading = LETTERS_ELSEWHERE
    choices = LETTERS
    rewards: ClassVar = {"letter": 2.0}
    rules: ClassVar = {
        "task.language": one_of("auto", "vi", "en"),
        "task.answer_with": one_of("letter", "text"),
        "task.reorder": flag(),
        "task.submit": one_of("scores", "text"),
        "task.fallback": one_of(*LETTERS),
    }

    def __init__(
        self,
        prompt: str,
        print_times: bool = True,
        question: str | None = None,
        language: str = "auto",
        answer_with: str = "letter",
        reorder: bool = False,
        submit: str = "scores",
        fallback: str = "A",
    ) -> None:
        self.language, self.answer_with, self.reorder = language, answer_with, reorder
        self.submit, self.fallback = submit, fallback
        super().__init__(prompt, print_times, question)

    @classmethod
    def errors(cls, flat: Mapping[str, Any]) -> list[str]:
        """Whole texts have no place that could be preferred."""
        if flat.get("task.answer_with") == "text" and flat.get("task.reorder"):
            return ["task.reorder=true: whole texts do not depend on a letter's place; use task.answer_with=letter"]
        return []

    def templates(self) -> tuple[str, ...]:
        """Both languages' templates."""
        return tuple(f"mcq_{self.prompt}_{language}" for language in ("vi", "en"))

    def template_of(self, observation: Observation) -> str:
        """The template in the configured or the question's language."""
        language = language_of(observation.question or "") if self.language == "auto" else self.language
        return f"mcq_{self.prompt}_{language}"

    def default_question(self) -> str:
        """There is none: a choice without a question means nothing."""
        raise ConfigError("task=mcq needs clips with questions", do="use data=roadbuddy or data=synthetic")

    def num_choices(self, observation: Observation) -> int:
        """As many as the question has."""
        if not 2 <= len(observation.choices) <= len(LETTERS):
            raise ConfigError(
                f"task=mcq needs questions with 2 to {len(LETTERS)} choices", got=f"{len(observation.choices)}",
                do="use data=roadbuddy or data=synthetic",
            )  # fmt: skip
        return len(observation.choices)

    def reorderings(self, observation: Observation) -> list[tuple[int, ...]]:
        """The rotations of the options: each stands once in each place."""
        if not self.reorder:
            return []
        count = self.num_choices(observation)
        return [tuple((place + shift) % count for place in range(count)) for shift in range(1, count)]

    def option_texts(self, observation: Observation) -> tuple[str, ...] | None:
        """The options' own texts, if they are what is scored."""
        return tuple(observation.choices) if self.answer_with == "text" else None

    def target(self, sample: Sample) -> int | None:
        """The number of the right option."""
        answer = sample.clip.extra.get("answer")
        return None if answer is None else int(answer)

    def answer(self, sample: Sample) -> str:
        """The letter, or the option's text."""
        target = need_target(self.target(sample), sample)
        return LETTERS[target] if self.answer_with == "letter" else str(sample.clip.extra["choices"][target])

    def parse(self, text: str | None, observation: Observation) -> tuple[int | None, Status]:
        """Read a letter; an option's whole text counts as its letter where texts are taught."""
        if text is not None and self.answer_with == "text":
            same = [i for i, choice in enumerate(observation.choices) if _plain(choice) == _plain(text)]
            if len(same) == 1:
                return same[0], "parsed"
        return parse_letter(text, self.num_choices(observation))

    def columns(self, sample: Sample) -> dict[str, Any]:
        """Question, number of choices, language."""
        extra = sample.clip.extra
        return {
            "question": extra.get("question"),
            "choices": list(extra.get("choices", ())),
            "num_choices": len(extra.get("choices", ())),
            "language": language_of(str(extra.get("question"))),
            "letters": list(extra.get("letters") or LETTERS),
        }

    def baseline(self, train: Sequence[Sample], scored: Sequence[Sample]) -> dict[str, list[Any]]:
        """Answers of a reader who saw the training questions and no frame.

        The option whose text was right most often for the same question, else overall, else the
        most frequent letter among the existing ones.
        """
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        texts: Counter[str] = Counter()
        letters: Counter[int] = Counter()
        for sample in train:
            target = self.target(sample)
            if target is not None:
                right = _plain(sample.clip.extra["choices"][target])
                by_question[_plain(str(sample.clip.extra["question"]))][right] += 1
                texts[right] += 1
                letters[target] += 1
        said = []
        for sample in scored:
            options = [_plain(c) for c in sample.clip.extra.get("choices", ())]
            same = by_question[_plain(str(sample.clip.extra.get("question")))]
            said.append(
                max(range(len(options)), key=lambda i: (same[options[i]], texts[options[i]], letters[i]))
                if options and letters
                else None
            )
        return {"text_only_answer": said}

    def dataset_tables(self, clips: Sequence[Clip]) -> dict[str, list[dict[str, Any]]]:
        """Letters, numbers of choices, questions a video, support frames, repeated questions, irregular rows."""
        rows = []
        for split in SPLITS:
            mine = [c for c in clips if c.split == split and c.extra.get("choices")]
            known = [c for c in mine if c.extra.get("answer") is not None]
            letters = Counter(LETTERS[int(c.extra["answer"])] for c in known)
            counts = Counter(len(c.extra["choices"]) for c in mine)
            top = max(letters.values(), default=0)
            rows.append(
                {
                    "split": split, "questions": len(mine),
                    "videos": len({c.path for c in mine if "failed" not in c.extra}),
                    "answered": len(known), **{letter: letters[letter] for letter in LETTERS},
                    **{f"{n} choices": counts[n] for n in (2, 3, 4)},
                    "majority": round(top / max(len(known), 1), 3),
                    "random": round(float(np.mean([1 / len(c.extra["choices"]) for c in mine])), 3) if mine else 0.0,
                    "vi": sum(language_of(str(c.extra.get("question"))) == "vi" for c in mine),
                }
            )  # fmt: skip
        asked: dict[tuple[str, str], list[Clip]] = defaultdict(list)
        for clip in clips:
            asked[(clip.path, _plain(str(clip.extra.get("question"))))].append(clip)
        repeated = [same for same in asked.values() if len(same) > 1 and same[0].path]
        texts = Counter(_plain(str(c.extra.get("question"))) for c in clips)
        notes = [(c.clip_id, str(note)) for c in clips for note in c.extra.get("irregular", ())]
        notes += [
            (same[0].clip_id, f"asked {len(same)} times of one video"
             + (" with different answers" if len({_right(c) for c in same}) > 1 else ""))
            for same in repeated
        ]  # fmt: skip
        moments = [c.extra["support_frames"] for c in clips if c.extra.get("support_frames")]
        late = sum(max(c.extra["support_frames"]) > c.duration_s for c in clips
                   if c.extra.get("support_frames") and "failed" not in c.extra)  # fmt: skip
        spread = Counter(len(m) for m in moments)
        videos = Counter(c.path for c in clips if c.path)
        facts = {
            "questions whose text occurs more than once": sum(n for n in texts.values() if n > 1),
            "questions a video": ", ".join(f"{k}: {v}" for k, v in sorted(Counter(videos.values()).items())) or "–",
            "support moments a question": ", ".join(f"{k}: {v}" for k, v in sorted(spread.items())) or "–",
            "support moments past the clip's end (clamped)": late,
        }
        tables: dict[str, list[dict[str, Any]]] = {
            "letters and choices": rows,
            "questions": [{"what": k, "number": v} for k, v in facts.items()],
        }
        if notes:
            tables[f"{len(notes)} irregular rows (used)"] = [{"question": i, "what": note} for i, note in notes[:40]]
        return tables

    def write(self, rows: pd.DataFrame, folder: Path) -> list[str]:
        """Write ``submission.csv`` (``id,answer``): a letter for every row, fallbacks counted."""
        lines: list[dict[str, str]] = []
        fallen: list[str] = []
        for _, row in rows.iterrows():
            number = said_choice(row["scores"]) if self.submit == "scores" else row["answer"]
            letter = None if pd.isna(number) or number < 0 else row["letters"][int(number)]
            if letter is None:
                fallen.append(f"{row['clip_id']} ({row['problem'] or 'no answer in the text'})")
            lines.append({"id": row["clip_id"], "answer": letter or self.fallback})
        cells(pd.DataFrame(lines, columns=["id", "answer"])).to_csv(folder / "submission.csv", index=False)
        if not fallen:
            return []
        shown = "; ".join(fallen[:3]) + (" ..." if len(fallen) > 3 else "")
        return [f"submission.csv: {len(fallen)} of {len(lines)} rows had no answer and say {self.fallback}: {shown}"]


def language_of(text: str) -> str:
    """``vi`` if a text has letters or tones of Vietnamese, else ``en``.

    Example:
        >>> language_of("Đèn màu gì?"), language_of("Which colour is the light?"), language_of("Xe gì?")
        ('vi', 'en', 'vi')
    """
    lower = text.lower()
    decomposed = set(unicodedata.normalize("NFD", lower))
    vietnamese = _VIETNAMESE & set(unicodedata.normalize("NFC", lower)) or _TONES & decomposed
    return "vi" if vietnamese else "en"


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split()).rstrip(".")


def _right(clip: Clip) -> str:
    answer = clip.extra.get("answer")
    return "" if answer is None else _plain(clip.extra["choices"][int(answer)])
