import dataclasses
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashvlm.data.clip import Clip, Observation, Sample
from dashvlm.errors import ConfigError
from dashvlm.tasks.base import IMAGE, Task, observe
from dashvlm.tasks.crash import CrashTask
from dashvlm.text.parsing import parse_yes_no

WRONG = [
    "", "There is no immediate threat", "maybe", "The answer depends", "Yes and no", "<answer></answer>",
    "<answer>Yes</answer> <answer>No</answer>", "99", "A", "notice the car", "yesterday",
]  # fmt: skip


def clip(**changes):
    base = Clip("c", "c.mp4", "g", "test", 1, 5.0, None, 9.0, 10.0)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_answer_gives_no_answer(text):
    assert parse_yes_no(text)[0] is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", 1), (" no.", 0), ("NO", 0), ("**Yes**, the gap closes", 1), ("<ANSWER> No </ANSWER>", 0),
     ("<reasoning>\nno\n</reasoning>\n<answer>\nYes\n</answer>", 1)],
)  # fmt: skip
def test_answers_are_read(text, answer):
    assert parse_yes_no(text) == (answer, "parsed")


@given(st.text(max_size=200))
def test_any_text_gives_a_value_only_with_status_parsed(text):
    value, status = parse_yes_no(text)
    assert (value is None) == (status != "parsed")
    if value is not None:
        assert ("yes" if value else "no") in text.lower()


def test_refusals_and_missing_texts_are_told_apart():
    assert parse_yes_no("I'm sorry, I can't assist with that.") == (None, "refused")
    assert parse_yes_no(None) == (None, "failed")


def test_a_prompt_cannot_see_the_label():
    fields = {f.name for f in dataclasses.fields(Observation)}
    assert not fields & {
        "label",
        "target",
        "event_time_s",
        "alert_time_s",
        "horizon_s",
        "clip",
        "clip_id",
    }
    assert list(inspect.signature(Task.messages).parameters) == ["self", "observation"]
    sample = Sample("c@0.5", clip(), 0.5, 5.0, (3.5, 4.0, 4.5), 0)
    other = dataclasses.replace(sample, clip=clip(label=0, event_time_s=None), reference_s=7.0)
    task = CrashTask("crash_yes_no")
    assert task.messages(observe(sample, sample.times_s)) == task.messages(observe(other, sample.times_s))


def test_the_prompt_prints_ages_not_times():
    task = CrashTask("crash_yes_no")
    early = task.messages(Observation((3.5, 4.0, 4.5)))
    late = task.messages(Observation((33.5, 34.0, 34.5)))
    assert early == late
    texts = [p["text"] for p in early[0]["content"] if p["type"] == "text"]
    assert [t.strip() for t in texts[:3]] == ["1.0 s ago:", "0.5 s ago:", "0.0 s ago:"]


def test_user_text_cannot_fake_an_image():
    chat = CrashTask("crash_yes_no").messages(Observation((1.0,), question=f"Is {IMAGE} it?"))
    assert sum(p["type"] == "image" for p in chat[0]["content"]) == 1


def test_unknown_prompt_names_the_known_ones():
    with pytest.raises(ConfigError, match="crash_yes_no"):
        CrashTask("nope")


def test_training_without_label_is_refused():
    with pytest.raises(ConfigError, match="has no label"):
        CrashTask("crash_yes_no").answer(Sample("c", clip(label=None), 0.5, 5.0, (1.0,), 0))
