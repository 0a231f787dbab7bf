"""What ``--help`` of a verb prints: what it does, how to type it, its groups and keys; a screen, not a book."""

from __future__ import annotations

import ast
import re
import textwrap

from dashvlm.config.find import CONF, PACKAGE, choices_of

WIDTH = 79
_GROUP = re.compile(r"^  - (?:override /)?(\w+): (\S+)(?:\s+# (.*))?$")
_KEY = re.compile(r"^([a-z]\w*): (.*?)(?:\s{1,}# (.*))?$")
HIDDEN = {"paths", "hydra", "local", "sweep"}
"""Groups and keys that nobody sets by hand, and ``paths``, which has a line of its own."""
ONLY = {"score": {"task", "data"}, "label": {"task", "data", "teacher"}}
"""Verb -> the groups that matter to it, where not all do."""


def short_help(verb: str) -> str:
    """The help of a verb, at most 60 lines of 79 columns, from its docstring and ``conf/VERB.yaml``."""
    about, examples = _docstring(verb)
    groups, keys = _groups_and_keys(verb)
    lines = [*textwrap.wrap(about, WIDTH), ""]
    lines += [part for line in examples for part in _wrapped(f"  {line}", 6)]
    if groups:
        lines += ["", "groups (GROUP=CHOICE; each choice begins with a line that says when to take it)"]
        lines += [part for group, what in groups for part in _group(group, what)]
    if keys:
        lines += ["", "keys (KEY=VALUE)"]
        lines += [part for key, what in keys for part in _entry(key, what)]
    lines += ["", "paths.output_dir=FOLDER  where runs go   paths.cache_dir=FOLDER  frames, twins",
              "--cfg job  the composed configuration   --config-dir FOLDER  your own files",
              "--hydra-help  Hydra's own help          every key: docs/config/"]  # fmt: skip
    return "\n".join(lines)


def _docstring(verb: str) -> tuple[str, list[str]]:
    """The first sentence of a verb's module, and its example lines."""
    path = PACKAGE / f"{verb}.py"
    path = path if path.is_file() else PACKAGE / verb / "__main__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, _, rest = text.partition("\n")
    examples = [line.strip() for line in rest.splitlines() if line.strip().startswith("python -m")]
    examples = [re.sub(r"^python -m dashvlm\.", "dashvlm ", re.sub(r"\s{2,}", "   # ", line)) for line in examples]
    return first.replace("``", ""), examples


def _groups_and_keys(verb: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Groups and keys with what their comments say; a verb that extends ``train`` has its groups."""
    text = (CONF / f"{verb}.yaml").read_text(encoding="utf-8")
    groups: dict[str, str] = {}
    if verb != "train" and "\n  - train\n" in text:
        groups = dict(_groups_and_keys("train")[0])
    keys: list[tuple[str, str]] = []
    before = ""
    for line in text.splitlines():
        if found := _GROUP.match(line):
            if found[1] not in HIDDEN and (CONF / found[1]).is_dir():
                groups.setdefault(found[1], found[3] or "")
        elif line.startswith("#"):
            before = f"{before} {line.lstrip('# -')}".strip()
        elif found := _KEY.match(line):
            if found[1] not in HIDDEN and found[1] != "defaults":
                value = "" if found[2] in ("null", "???", "[]") or found[2].startswith("{") else f"[{found[2]}] "
                keys.append((found[1], value + (found[3] or before)))
            before = ""
        else:
            before = ""
    wanted = ONLY.get(verb, set(groups))
    return [(name, what) for name, what in groups.items() if name in wanted], keys


def _group(name: str, what: str) -> list[str]:
    known = choices_of(name)
    shown = ", ".join(known[:12]) + (f", ... ({len(known)})" if len(known) > 12 else "")
    return _entry(name, f"{what}: {shown}" if what else shown)


def _entry(name: str, what: str) -> list[str]:
    return _wrapped(f"  {name:16s} {what}", 19)


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True,
                         replace_whitespace=False, initial_indent="")  # fmt: skip
