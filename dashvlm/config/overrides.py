"""Configuration: where it lives, what a command line may say about it, and all errors at once.

Together with the verbs and ``sweep`` the only place that imports Hydra. Loads no torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dashvlm.config.find import CONF, choices_of, own_conf, search_words
from dashvlm.config.rules import flatten, near
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety.files import read_yaml
from dashvlm.safety.redaction import problems

HUB = "hf://"
DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg", "/dev/kfd")
"""What is there where a card can be used: NVIDIA, NVIDIA in WSL, AMD."""
MAX_PROMPT = 65_536
"""Most bytes of a prompt template."""
FLAGS = ("-m", "--multirun")
VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p")
"""Hydra's flags with a value."""
_PATH_KEY = re.compile(
    r"(^|\.)(root|file|video|input|run|labels|pairs|checkpoint|start_from|output|predictions|captions|annotations|images"
    r"|clip_scores|prompt_file|label_prompt|clip|clip_scores_to|write_messages|base|output_dir|cache_dir|data_dir)$"
)
_PLAIN = re.compile(r"[\w./:+~@%-]*", re.ASCII)
_GRAMMAR = re.compile(r"""['"\[{]|\$\{|(glob|choice|range|interval|shuffle|sort|tag|str|int|float|bool)\(""")


def flags_first(argv: Sequence[str]) -> list[str]:
    """Move flags, with their values, to the front: Hydra 1.3 does not parse them between overrides.

    Example:
        >>> flags_first(["model=a", "-m", "data.num_frames=5,10"])
        ['-m', 'model=a', 'data.num_frames=5,10']
        >>> flags_first(["model=a", "--cfg", "job", "seed=1"])
        ['--cfg', 'job', 'model=a', 'seed=1']
    """
    flags: list[str] = []
    words: list[str] = []
    for word in argv:
        belongs = bool(flags) and flags[-1] in VALUED and "=" not in word
        (flags if word.startswith("-") or belongs else words).append(word)
    return flags + words


def with_quotes(argv: Sequence[str]) -> list[str]:
    """Quote names of files and folders for Hydra, whose grammar gives ``( ) = , #`` and blanks a meaning.

    With ``-m`` a comma separates values unless a file of the whole name exists.

    Example:
        >>> with_quotes(["data.root=My clips (1)", "data.num_frames=5", "-m", "data.root=a,b"])
        ["data.root='My clips (1)'", 'data.num_frames=5', '-m', 'data.root=a,b']
    """
    return [_quoted(word, any(f in argv for f in FLAGS)) for word in argv]


def _quoted(word: str, sweeps: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or not _PATH_KEY.search(key) or _PLAIN.fullmatch(value):
        return word
    with contextlib.suppress(OSError, ValueError):  # a name may be too long, or hold a zero byte
        if Path(value).expanduser().exists():
            return f"{key}={hydra_quotes(value)}"
    return word if _GRAMMAR.match(value) or (sweeps and "," in value) else f"{key}={hydra_quotes(value)}"


def hydra_quotes(value: str) -> str:
    """A text as Hydra's grammar quotes it."""
    inner = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"


def check_secrets(words: Iterable[str]) -> None:
    """Refuse words that hold a secret, before anything prints or writes them.

    Raises:
        ConfigError: naming the keys, never the values.
    """
    refuse(problem for word in words for problem in problems(word))


def make_private(cfg: Mapping[str, Any] | DictConfig) -> None:
    """What this process and its children make is for its user alone, or for the group with ``paths.shared=true``."""
    os.umask(0o007 if (cfg.get("paths") or {}).get("shared") else 0o077)


@contextlib.contextmanager
def private(cfg: Mapping[str, Any]) -> Iterator[None]:
    """As :func:`make_private`, for a while: a caller's own files keep the permissions that it chose."""
    before = os.umask(0o077)
    make_private(cfg)
    try:
        yield
    finally:
        os.umask(before)


def check_words(words: Iterable[str]) -> None:
    """Refuse words that Hydra's grammar cannot read, showing the quoting that works.

    Raises:
        ConfigError: for the first such word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in words:
        if re.fullmatch(r"[+~]*hydra\.job\.chdir=(true|yes|on)", word, re.IGNORECASE):
            raise ConfigError(
                f"{word}: paths on the command line are relative to where it was typed",
                do="leave it out; each run has a folder of its own below paths.output_dir",
            )
        try:
            parser.parse_override(word)
        except HydraException as error:
            key, _, value = word.partition("=")
            raise ConfigError(
                f"the word {word!r} cannot be read", got=str(error).strip().splitlines()[0],
                do=f"quote the value twice, for the shell and for Hydra: {shlex.quote(f'{key}={hydra_quotes(value)}')}",
            ) from None  # fmt: skip


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a configuration to plain Python values, without Hydra's own node."""
    node = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(node, dict)
    task, data, trainer = node.get("task"), node.get("data"), node.get("trainer")
    if isinstance(trainer, dict) and trainer.get("precision") == "auto":
        trainer["precision"] = fitting_precision(str(trainer.get("accelerator")))
    if isinstance(task, dict) and isinstance(task.get("prompt_file"), str):
        task["prompt_file"] = read_prompt("task.prompt_file", task["prompt_file"])
    if isinstance(data, dict) and str(data.get("root")).startswith(HUB):
        data["root"] = str(from_hub(data["root"], Path(str(node["paths"]["cache_dir"])) / "hub"))
    return {str(k): v for k, v in node.items() if k != "hydra"}


def fitting_precision(accelerator: str) -> str:
    """The precision that ``auto`` means here: ``bf16-mixed`` where a card has bfloat16, ``16-mixed`` on older cards.

    A CPU computes in ``32-true``. torch, which takes seconds to load, is asked only where a card has a driver.
    """
    if accelerator not in ("auto", "gpu", "cuda") or not any(Path(p).exists() for p in DRIVERS):
        return "32-true"
    import torch

    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def read_prompt(key: str, name: str) -> dict[str, str]:
    """A prompt template of the user's own: its ``file`` and its ``text``, which is what a run keeps.

    Raises:
        ConfigError: if it cannot be read.
    """
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_PROMPT else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}={name} cannot be read", got=str(error), do="name a text file in UTF-8") from error
    if text is None:
        raise ConfigError(f"{key}={name} is no prompt", got=f"{path.stat().st_size:,} bytes",
                          do=f"name a text file of at most {MAX_PROMPT:,} bytes")  # fmt: skip
    return {"file": name, "text": text}


@functools.cache  # a command composes several times
def from_hub(root: str, folder: Path) -> Path:
    """The local folder of a data set on the Hugging Face hub, downloaded where it is not there.

    Args:
        root: ``hf://datasets/OWNER/NAME``, with ``@REVISION`` for a branch, tag or commit.
        folder: where data sets of the hub are kept, whole files in a folder each.

    Raises:
        ConfigError: if it is no such address.
        DataError: if it is neither there nor in the cache.
    """
    found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", root)
    if not found:
        raise ConfigError("data.root is no data set of the hub", got=root, do="hf://datasets/OWNER/NAME@REVISION")
    from huggingface_hub import snapshot_download

    try:
        place = folder / re.sub(r"[^\w.-]", "--", root.removeprefix(f"{HUB}datasets/"))
        return Path(snapshot_download(found.group(1), repo_type="dataset", revision=found.group(2), local_dir=place))
    except Exception as error:  # its errors have no common class: HTTP, offline, not found, access
        raise DataError(
            f"{root} cannot be downloaded", got=str(error).strip().splitlines()[0],
            do="check name, revision and network; a gated data set needs `hf auth login`",
        ) from error  # fmt: skip


def check_overrides(name: str, overrides: Sequence[str]) -> None:
    """Check group choices and keys of a command line before Hydra does, to report all at once.

    Raises:
        ConfigError: listing every unknown group option and key with near names.
    """
    from hydra import compose

    errors: list[str] = []
    kept: list[str] = []
    keys: list[tuple[str, str]] = []
    groups = {p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()}
    for override in overrides:
        match = re.match(r"^([~+]*)([\w./@-]+)(?:=(.*))?$", override, re.DOTALL)
        if not match:
            continue
        prefix, key, value = match.groups()
        group = key.split("@")[0]
        if group in groups and value is not None:
            known = choices_of(group)
            plugged = group in ("hydra/launcher", "hydra/sweeper")
            options = [v.strip() for v in re.split(r",(?![^\[({]*[\])}])", value)]
            wrong = [v for v in options if v not in known and v != "null" and not v.startswith(("glob(", "choice("))]
            if wrong and not plugged and "[" not in value:
                errors.append(f"{key}={wrong[0]}: unknown; the choices are {', '.join(known)}{near(wrong[0], known)}")
            elif not plugged and "(" not in value:
                kept.append(f"{prefix}{key}={options[0]}")
        elif not prefix.startswith("+") and not key.startswith("hydra"):
            keys.append((override, key))
    if not errors or keys:
        try:
            flat = flatten(plain_nodes(compose(name, overrides=[*kept, *search_words()])))
        except Exception:
            flat = {}  # Hydra's own message will say why
        nodes = {k.rsplit(".", i)[0] for k in flat for i in range(k.count(".") + 1)}
        for override, key in keys:
            if flat and key not in nodes:
                hint = near(key, sorted(nodes)) or "; with this choice of groups; a new key needs a leading +"
                errors.append(f"{override}: there is no key {key}{hint}")
    if errors:
        raise ConfigError(
            f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the command line",
            got="\n       ".join(errors),
            do=f"see `python -m dashvlm.{Path(name).stem} --help`",
        )


def plain_nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration's nodes without resolving them."""
    node = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(node, dict)
    return {str(k): v for k, v in node.items()}


def refuse(errors: Iterable[str]) -> None:
    """Raise one ConfigError with all errors, if there are any."""
    found = list(dict.fromkeys(errors))
    if found:
        raise ConfigError(
            f"{len(found)} error{'s' if len(found) > 1 else ''} in the configuration",
            got="\n       ".join(found),
            do="change these values; `--cfg job` prints the whole configuration",
        )


def with_task(argv: list[str]) -> list[str]:
    """Add the task that a dataset is for, unless the command line names one."""
    named = [a.split("=", 1)[1] for a in argv if a.startswith("data=")]
    places = [place / "data" / f"{named[-1]}.yaml" for place in (CONF, own_conf()) if place and named]
    path = next((p for p in places if p.is_file()), None)
    if path is None or any(a.startswith("task=") for a in argv):
        return argv
    tasks = read_yaml(path).get("tasks")
    return [*argv, f"task={tasks[0]}"] if tasks else argv
