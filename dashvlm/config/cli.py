"""How every verb starts: fix the flags, check the command line, compose with Hydra, explain errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra import main as hydra_main
from omegaconf import DictConfig

from dashvlm.config.find import CONF, own_conf, search_words
from dashvlm.config.help import short_help
from dashvlm.config.overrides import (
    check_overrides,
    check_secrets,
    check_words,
    flags_first,
    make_private,
    plain,
    refuse,
    with_quotes,
)
from dashvlm.errors import UNUSABLE, DashVLMError, DataError, unusable
from dashvlm.safety import checksums
from dashvlm.safety.plaintext import say
from dashvlm.safety.redaction import clean, log_to, problems

# Hydra answers these itself; nothing is run, so nothing needs checking.
HYDRA_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--package",
)


@contextlib.contextmanager
def composing() -> Iterator[None]:
    """A context in which ``hydra.compose`` finds dashvlm's configuration, whatever else Hydra was doing."""
    from hydra.core.global_hydra import GlobalHydra

    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = theirs


def compose_train(words: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/train.yaml`` with some overrides, from within a verb or outside of one."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    with contextlib.nullcontext() if GlobalHydra.instance().is_initialized() else composing():
        return plain(compose("train", overrides=[*words, *search_words()]))


def overrides_of(argv: list[str]) -> list[str]:
    """Return the ``key=value`` words of a command line."""
    return [a for a in argv if not a.startswith("-")]


def start(name: str, task: Callable[[DictConfig], Any], argv: list[str]) -> int:
    """Compose the configuration ``conf/<name>.yaml`` with a command line and run a function on it.

    Args:
        name: of the primary configuration.
        task: receives the composed configuration.
        argv: the words after the verb.

    Returns:
        The exit code: 0, or 2 for an error that the user can mend (printed without traceback).
    """
    argv = with_quotes(flags_first(take_config_dir(argv)))
    if "--help" in argv or "-h" in argv:
        print(short_help(name))
        return 0
    asks = any(a.split("=")[0] in HYDRA_FLAGS for a in argv)
    failure: list[DashVLMError] = []

    def guarded(cfg: DictConfig) -> Any:
        try:
            refuse(problems(plain(cfg)))
            make_private(cfg)
            return task(cfg)
        except DashVLMError as error:
            failure.append(error)
            return None
        except OSError as error:
            if error.errno not in UNUSABLE:
                raise
            failure.append(unusable(error, _output_of(cfg)))
            return None
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, MemoryError) as error:
            if not _changed_run(cfg):
                raise
            failure.append(
                DataError(
                    f"{cfg.run}/config.yaml cannot be used", got=f"{type(error).__name__}: {error}"[:300],
                    do="copy the run's folder again from where it was made; it was changed after the run",
                )
            )  # fmt: skip
            return None

    try:
        check_secrets(overrides_of(argv))
        if not asks:
            check_words(overrides_of(argv))
            with composing():
                check_overrides(name, overrides_of(argv))
        own = own_conf()
        sys.argv = [f"dashvlm.{name}", *([f"--config-dir={own}"] if own else []), *argv]
        hydra_main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
    except DashVLMError as error:
        failure.append(error)
    for found in failure:
        explain(found)
    return 2 if failure else 0


def _output_of(cfg: DictConfig) -> Path | None:
    """Where a verb writes, for errors of the file system that name no file."""
    place = cfg.get("output") or (cfg.get("paths") or {}).get("output_dir")
    return Path(str(place)) if place else None


def _changed_run(cfg: DictConfig) -> bool:
    """Whether a verb works on a run that is not, or cannot be shown to be, as it was written."""
    folder = Path(str(cfg.get("run") or "")) if "run" in cfg else None
    return folder is not None and (not (folder / checksums.FILE).is_file() or bool(checksums.changed(folder)))


def take_config_dir(argv: Sequence[str]) -> list[str]:
    """Take ``--config-dir FOLDER`` out of a command line; this process and its children look there too."""
    words, rest = list(argv), []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ("--config-dir", "-cd"):
            rest.append(word)
        elif value or (words and not equals):
            os.environ["DASHVLM_CONF"] = str(Path(value or words.pop(0)).resolve())
        else:
            os.environ["DASHVLM_CONF"] = "(--config-dir names none)"
    return rest


def explain(error: DashVLMError) -> None:
    """Print an error without a traceback."""
    say(clean(f"{type(error).__name__}: {error}"), error=True)


def log_to_terminal() -> None:
    """Show progress lines of verbs that run in this process."""
    log_to([logging.StreamHandler(sys.stdout)], "%(message)s")
