"""From samples to a label file: requests in both modes, answers appended as they come, what to think of them."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np

from dashvlm.config.overrides import read_prompt
from dashvlm.data.clip import FrameArray, Sample
from dashvlm.data.frames import FrameStore
from dashvlm.endpoint.client import Teacher
from dashvlm.endpoint.exchange import Reply, Request
from dashvlm.errors import ConfigError, DataError
from dashvlm.labels.label_file import Label, read_labels
from dashvlm.metrics.intervals import RESAMPLES, group_weights, mean_estimate
from dashvlm.tasks.base import Task, observe
from dashvlm.text.parsing import is_refusal
from dashvlm.text.reasoning import split

PROMPTS = Path(__file__).parent / "prompts"
PROMPT = "five_factors"
OUTCOMES = ("no collision", "a collision")


@dataclass(frozen=True)
class Ask:
    """A clip to be asked about."""

    sample: Sample
    mode: str
    request: Request
    num_frames: int
    times_s: tuple[float, ...]


def requests_for(
    samples: Sequence[Sample],
    modes: Sequence[str],
    task: Task,
    store: FrameStore,
    teacher: Teacher,
    system: str | None = None,
) -> tuple[list[Ask], dict[str, str]]:
    """Build the requests.

    Args:
        samples: with the frame times that training looks at.
        modes: ``told`` (yes/no tasks only) and ``blind``.
        task: writes the question, without access to the label.
        store: decodes.
        teacher: turns chats into requests.
        system: template of the system prompt, see :func:`label_template`; None takes ``five_factors``.

    Returns:
        Requests, and clip_id -> problem of clips that cannot be asked about.
    """
    asks: list[Ask] = []
    problems: dict[str, str] = {}
    for sample in samples:
        name = sample.clip.clip_id
        if "failed" in sample.clip.extra:
            problems[name] = str(sample.clip.extra["failed"])
            continue
        try:
            store.fill(Path(sample.clip.path), np.unique(sample.times_s))  # decoded once for all modes
            _, times = store.frames(Path(sample.clip.path), sample.times_s)
        except DataError as error:
            problems[name] = str(error).splitlines()[0]
            continue
        chat = task.messages(observe(sample, times.tolist()))
        for mode in modes:
            label = sample.clip.label
            if mode == "told" and label is None:
                problems[name] = "mode told: the clip has no label to tell"
                continue
            told = OUTCOMES[label] if mode == "told" and label is not None else ""
            above = _render(system or label_template(PROMPT), told) if task.labelled == "rationale" else ""
            request = teacher.request(chat, functools.partial(_frames, store, sample), above)
            asks.append(Ask(sample, mode, request, len(np.unique(times)), tuple(float(t) for t in times)))
    return asks, problems


def modes_of(label_in_prompt: str, task: Task) -> list[str]:
    """The modes to ask in.

    Raises:
        ConfigError: for a task whose label cannot be told.
    """
    if task.labelled == "rationale":
        return ["told", "blind"] if label_in_prompt == "both" else [label_in_prompt]
    if label_in_prompt == "told":
        raise ConfigError(f"label_in_prompt=told: task={task.name} has no outcome to tell", do="use blind")
    return ["blind"]


class LabelWriter:
    """Appends labels; what a killed process left half written is cut off first.

    Args:
        path: the label file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                path.write_bytes(whole)
        old = read_labels(path).labels if path.exists() and path.stat().st_size else ()
        self.labels: dict[tuple[str, str], Label] = {(label.clip_id, label.mode): label for label in old}

    def has(self, ask: Ask) -> bool:
        """Whether the answer to this very request is in the file."""
        found = self.labels.get((ask.sample.clip.clip_id, ask.mode))
        return found is not None and found.key == ask.request.key

    def add(self, label: Label) -> None:
        """Append a label and make sure that it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(label.line())
            file.flush()
            os.fsync(file.fileno())
        self.labels[label.clip_id, label.mode] = label


def to_label(ask: Ask, reply: Reply, task: Task, model: str, prompt: str = PROMPT) -> Label:
    """Read a reply; what is not in the form asked for keeps its text and gets no rationale."""
    text, sample = reply.text, ask.sample
    value, status = task.parse(text or None, observe(sample, ask.times_s))
    reasoned = task.labelled == "rationale"
    parts = split(text) if reasoned else None
    good = parts is not None if reasoned else status == "parsed"
    if not text.strip() and not reply.refused:
        state = "empty"
    elif reply.refused or (status == "refused" and not good) or (not good and is_refusal(text)):
        state = "refused"
    else:
        state = "labelled" if good and value is not None else "unparsed"
    more = {"prompt": prompt if reasoned else task.prompt, "frame_times_s": list(ask.times_s),
            "tokens": list(reply.tokens), "finish": reply.finish}  # fmt: skip
    answer = value if reasoned and state == "labelled" else None
    return Label(
        sample.clip.clip_id, ask.mode, state, text, parts[0] if parts else "", answer, sample.clip.label,
        ask.num_frames, model, ask.request.key, reply.cost_usd, more,
    )  # fmt: skip


def agreement(labels: Sequence[Label], groups: dict[str, str], seed: int = 0) -> list[dict[str, Any]]:
    """How often the teacher agrees with the dataset, and with itself when it is not told.

    Args:
        labels: of one file.
        groups: clip_id -> recording, for the intervals.
        seed: of the bootstrap.
    """
    by_mode = {m: {x.clip_id: x for x in labels if x.mode == m and x.answer is not None} for m in ("told", "blind")}
    rows = []

    def add(what: str, pairs: dict[str, bool]) -> None:
        if pairs:
            weights = group_weights([groups.get(c, c) for c in pairs], RESAMPLES, seed)
            estimate = mean_estimate(np.array(list(pairs.values()), dtype=np.float64), weights)
            rows.append({"agreement of": what, "clips": len(pairs), "share [95 %]": str(estimate)})

    for mode, found in by_mode.items():
        add(f"{mode} and the dataset", {c: x.answer == x.label for c, x in found.items() if x.label is not None})
    both = {c: by_mode["told"][c].answer == x.answer for c, x in by_mode["blind"].items() if c in by_mode["told"]}
    add("told and blind", both)
    return rows


class Progress:
    """One line about how asking goes: rewritten on a terminal, every few seconds elsewhere."""

    def __init__(self, total: int, cap_usd: float) -> None:
        self.total, self.cap, self.last, self.shown = total, cap_usd, 0.0, ""
        self.counts = {"labelled": 0, "unparsed": 0, "refused": 0, "empty": 0}

    def step(self, label: Label, teacher: Teacher, last: bool = False) -> None:
        """Count a label and say where things stand."""
        self.counts[label.status] += 1
        done, tally = sum(self.counts.values()), teacher.tally
        self.shown = (
            f"{done}/{self.total} answers, {tally.cached} from the cache, ${tally.spent_usd:.4f} of ${self.cap:g}; "
            f"in form {self.counts['labelled'] / done:.0%}, refused {self.counts['refused'] / done:.0%}, "
            f"{tally.retries} retries"
        )
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self.shown}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last > 5 or done == self.total:
            self.last = time.monotonic()
            print(self.shown, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Finish the line."""
        if sys.stderr.isatty() and self.shown:
            print(file=sys.stderr)


def _frames(store: FrameStore, sample: Sample) -> FrameArray:
    return store.frames(Path(sample.clip.path), sample.times_s)[0]


def label_template(name: str, tells: bool = False) -> str:
    """The text of a teacher's system prompt.

    Args:
        name: of one that comes with dashvlm, or a file.
        tells: whether the outcome is to be told.

    Raises:
        ConfigError: if there is none, or it is no template.
    """
    known = {p.stem: p for p in sorted(PROMPTS.glob("*.j2"))}
    if name in known:
        return known[name].read_text(encoding="utf-8")
    if not Path(name).expanduser().is_file():
        raise ConfigError(f"label_prompt={name} is no file", do=f"use {', '.join(known)}, or a text file of your own")
    text = read_prompt("label_prompt", name)["text"]
    try:
        said = [_render(text, told) for told in ("", *OUTCOMES)]
    except jinja2.TemplateError as error:
        raise ConfigError(
            f"label_prompt={name} cannot be used", got=str(error),
            do="a Jinja template; {{ told }} is `a collision`, `no collision`, or empty where nothing is told",
        ) from error  # fmt: skip
    if not all(said):
        raise ConfigError(f"label_prompt={name} is empty", do="write what the teacher is to do")
    if tells and len(set(said)) < len(said):
        raise ConfigError(
            f"label_prompt={name} tells no outcome", got="the same text whatever {{ told }} is",
            do="print {{ told }} in it, or use label_in_prompt=blind",
        )  # fmt: skip
    return text


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(text)


def _render(text: str, told: str) -> str:
    return _compiled(text).render(told=told).strip()
