"""How every verb starts: fix the flags, check the command line, compose with Hydra, explain errors."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra import main as hydra_main
from omegaconf import DictConfig

from dashvlm import signals
from dashvlm.config import CONF, check_overrides, check_words, flags_first, plain, with_quotes
from dashvlm.errors import UNUSABLE, DashVLMError, unusable

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
    """A context in which ``hydra.compose`` finds dashvlm's configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose_train(words: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/train.yaml`` with some overrides, from within a verb or outside of one."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    with contextlib.nullcontext() if GlobalHydra.instance().is_initialized() else composing():
        return plain(compose("train", overrides=list(words)))


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
        The exit code: 0, 2 for an error that the user can mend (printed without traceback), 128 and more for a signal.
    """
    argv = with_quotes(flags_first(argv))
    asks = any(a.split("=")[0] in HYDRA_FLAGS for a in argv)
    failure: list[DashVLMError] = []

    def guarded(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except DashVLMError as error:
            failure.append(error)
            return None
        except OSError as error:
            if error.errno not in UNUSABLE:
                raise
            failure.append(unusable(error))
            return None

    try:
        with signals.stoppable():
            if not asks:
                check_words(overrides_of(argv))
                with composing():
                    check_overrides(name, overrides_of(argv))
            sys.argv = [f"dashvlm.{name}", *argv]
            hydra_main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
    except DashVLMError as error:
        failure.append(error)
    except signals.Interrupted as stop:
        print(f"\n{stop}; type the same command to go on", file=sys.stderr)
        return stop.code
    for found in failure:
        explain(found)
    return 2 if failure else 0


def explain(error: DashVLMError) -> None:
    """Print an error without a traceback."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)


def log_to_terminal() -> None:
    """Show progress lines of verbs that run in this process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for noisy in (
        "httpx",
        "httpx2",
        "openai",
        "pytorch_lightning.utilities.rank_zero",
        "fsspec",
        "matplotlib",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
