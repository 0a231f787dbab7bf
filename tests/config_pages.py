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
        "# The verbs and their keys",
        "Generated from `conf/` by `make docs`; do not edit. `train` has the groups of the other pages.",
    ]
    for verb, what in VERBS.items():
        lines = (ROOT / "conf" / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
        keys, inside = [], False
        for line in lines[1:]:
            inside = line.startswith("defaults:") or (inside and line.startswith("  - "))
            if not inside:
                keys.append(line)
        shown = "\n".join(keys).strip() or "# those of train"
        parts.append(f"## `python -m dashvlm.{verb}`: {what}\n\n{lines[0].lstrip('# ')}\n\n```yaml\n{shown}\n```")
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
