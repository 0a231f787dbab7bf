"""Write a page for each config group from ``conf/`` and one of settings: ``make docs``. Tests fail on stale ones."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "model": "the backbone", "task": "what is asked", "data": "clips and how they are sampled",
    "objective": "what is minimised", "peft": "which parameters train", "optim": "how they move",
    "trainer": "hardware, length, precision", "callbacks": "checkpoints and early stopping",
    "logger": "where curves go", "teacher": "who writes labels", "experiment": "named combinations",
    "debug": "quick checks",
}  # fmt: skip


def page(group):
    """One group: a section a file with its first lines and its keys as they stand in the file."""
    prefix = "" if group in ("experiment", "debug") else f"{group}."
    parts = [
        f"# `{group}`: {GROUPS[group]}",
        "Generated from `conf/` by `make docs`; do not edit.",
        f"Choose with `{group}=NAME`; change a key with `{prefix}KEY=VALUE`.",
    ]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        said = []
        while lines and lines[0].startswith("#"):
            line = lines.pop(0).lstrip("# ")
            if not line.startswith("@package"):
                said.append(line)
        shown = [line for line in lines if not line.startswith(("_target_", "  chat_template"))]
        cut = next((i for i, line in enumerate(shown) if line.startswith(("twin:", "published:"))), len(shown))
        about = " ".join(line for line in said if not line.startswith("python"))
        commands = [re.sub(r"\s{2,}\((.*)\)$", r"   # \1", line) for line in said if line.startswith("python")]
        parts.append(f"## {path.stem}\n\n{about}")
        if commands:
            parts.append("```bash\n" + "\n".join(commands) + "\n```")
        if cut:
            parts.append("```yaml\n" + "\n".join(shown[:cut]).strip() + "\n```")
        assert yaml.safe_load(text) is not None or not lines
    return "\n\n".join(parts) + "\n"


VERBS = {
    "evaluate": "score a run on other data", "predict": "risk over time of a video", "inspect": "data and models",
    "label": "what a teacher writes", "report": "tables, studies, comparisons", "export": "what to publish",
}  # fmt: skip


def verbs():
    """The keys of each verb besides those of the groups, as they stand in its file."""
    parts = [
        "# The verbs and their keys",
        "Generated from `conf/` by `make docs`; do not edit. `train` has the groups of the other pages.",
    ]
    for verb, what in VERBS.items():
        first, *lines = (ROOT / "conf" / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
        own = [line for line in lines if not line.startswith(("defaults:", "  - "))]
        keys = "\n".join(own).strip()
        parts.append(f"## `python -m dashvlm.{verb}`: {what}\n\n{first.lstrip('# ')}\n\n```yaml\n{keys}\n```")
    return "\n\n".join(parts) + "\n"


def pages():
    """File name -> text."""
    return {f"{group}.md": page(group) for group in GROUPS} | {"verbs.md": verbs()}


def settings_of(name, every):
    """The settings of an experiment, those of the one that it is ``like`` included."""
    entry = every[name]
    own = {x["setting"]: x for x in entry["settings"]}
    if "like" in entry:
        shared = {x["setting"]: x for x in settings_of(entry["like"], every) if x["setting"] not in entry["without"]}
        own = shared | own
    return list(own.values())


def value_of(config, key):
    """A value of a composed configuration by its dotted key; "not set" where an open mapping lacks it."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return "not set"
        config = config[part]
    return config


def settings_page(every, composed):
    """What each project states, what our experiment has, and why where they differ.

    Args:
        every: ``experiments/settings.yaml``.
        composed: name of an experiment -> its configuration.
    """
    parts = [
        "# The five projects' settings and ours",
        "Generated from `experiments/settings.yaml` and the composed configurations by `make docs`; do not edit. One "
        "table for each experiment: what the project's document or code states, what `experiment=NAME` has, and the "
        "reason where they differ.",
        "| experiment | what | settings | different, each with its reason |\n|---|---|---|---|\n"
        + "\n".join(
            f"| [{name}](#{name}) | {entry['title']} ({entry['source']}) | {len(settings_of(name, every))} | "
            f"{sum('why' in x for x in settings_of(name, every))} |"
            for name, entry in every.items()
        ),
    ]
    for name, entry in every.items():
        rows = []
        for x in settings_of(name, every):
            ours = ", ".join(f"`{k}={_shown(value_of(composed[name], k))}`" for k in x["keys"]) or "–"
            cells = [x["setting"], f"{x['theirs']} ({x['where']})", ours, x.get("why", "the same")]
            rows.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
        head = "| setting | theirs (where) | ours | why |\n|---|---|---|---|\n"
        parts.append(f"## {name}\n\n{entry['title']}: {entry['source']}\n\n{head}" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _shown(value):
    if isinstance(value, list):
        return "[" + ",".join(_shown(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_shown(v)}" for k, v in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def compose_all(names):
    """The composed configuration of each experiment, as plain values."""
    from dashvlm.config.cli import compose_train

    return {name: compose_train(words_for(name)) for name in names}


def words_for(name):
    """The words that an experiment needs besides its name: places of what nobody can guess."""
    needed = {"nexar_reasoning": ["data.labels=labels.jsonl"], "nexar_sft": ["data.labels=labels.jsonl"],
              "nexar_grpo": ["start_from=null"]}  # fmt: skip
    return [f"experiment={name}", "data.root=FOLDER", *needed.get(name, [])]


if __name__ == "__main__":
    folder = ROOT / "docs" / "config"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    every = yaml.safe_load((ROOT / "experiments" / "settings.yaml").read_text(encoding="utf-8"))
    (folder.parent / "settings.md").write_text(settings_page(every, compose_all(every)), encoding="utf-8")
    print(f"written: {folder}/ ({len(pages())} pages), {folder.parent}/settings.md")
