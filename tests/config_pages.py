"""Write a page for each config group from ``conf/``: ``make docs``. A test fails when a page is stale."""

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


if __name__ == "__main__":
    folder = ROOT / "docs" / "config"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"written: {folder}/ ({len(pages())} pages)")
