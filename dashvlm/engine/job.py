"""One job in a process of its own: lock, signals, log, exit code. ``python -m dashvlm.engine.job FOLDER``.

Whoever trains holds the lock, so that a folder never has two trainers, whatever became of the process that started
them. Heavy imports come after the signals are taken care of.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dashvlm.config.identity import run_id
from dashvlm.errors import UNUSABLE, ConfigError, DashVLMError, OutOfMemory, TrainingError, unusable
from dashvlm.safety import checksums, signals
from dashvlm.safety.files import write_json
from dashvlm.safety.plaintext import say
from dashvlm.safety.redaction import clean, log_to

log = logging.getLogger(__name__)
LOCK = "DASHVLM_LOCK"
"""Environment variable: the descriptor of the lock that the parent has taken for this job."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Hold a run's folder; wait for the process that holds it, and say so."""
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            print(f"[{folder.name}] is running in {holder}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield lock


_held: list[int] = []


def _let_go() -> None:
    """In a forked child: the lock is the trainer's."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def _lock_of(folder: Path) -> Iterator[None]:
    """The parent's lock, kept by this process as well; its own where the job was started by hand."""
    given = os.environ.pop(LOCK, None)
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("LOCAL_RANK", 0)):
            pass  # the first process of the run holds it
        elif given is None:
            _held.append(stack.enter_context(locked(folder)).fileno())
        else:
            os.set_inheritable(int(given), False)
            _held.append(int(given))
            stack.callback(os.close, int(given))
            signals.end_with_parent()
        try:
            yield
        finally:
            _held.clear()


def main(folder: Path) -> int:
    """Run a folder's configuration; log to its ``job.log``; return the exit code."""
    rank, by_hand = int(os.environ.get("LOCAL_RANK", 0)), LOCK not in os.environ
    if rank:
        signals.end_with_parent(signal.SIGKILL)  # the first process saves; nobody else has anything to keep
    with signals.stoppable():
        try:
            with _lock_of(folder):
                return _main(folder, rank)
        except signals.Interrupted as stop:
            if not by_hand:  # the parent says it to the terminal, once
                logging.getLogger().handlers[1:] = []
            log.warning("%s; the same command resumes", stop)
            return 0 if rank else stop.code  # Lightning kills the first process where another one ends with an error


def _main(folder: Path, rank: int) -> int:
    handler = _log_to(folder, rank)
    import dashvlm.engine.run
    from dashvlm.engine.build import read_config

    dashvlm.engine.run.quiet_libraries()
    if handler.stream:
        faulthandler.enable(handler.stream)
    (folder / "failed.json").unlink(missing_ok=True)
    try:
        config = read_config(folder)
        _refuse_other_settings(config, folder)
        dashvlm.engine.run.run(config, folder)
    except KeyboardInterrupt:
        raise signals.Interrupted(signal.SIGINT) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            error = unusable(error, folder)
        # What the user can mend needs no traceback on the screen; the log has it anyway.
        mendable = isinstance(error, DashVLMError | OSError)
        for other in logging.getLogger().handlers:
            if other is not handler and mendable:
                other.setLevel(logging.CRITICAL)
        log.error("run failed", exc_info=error)
        if mendable and rank == 0:
            say(clean(f"\n{type(error).__name__}: {error}"), error=True)
        if rank == 0:
            with contextlib.suppress(OSError):
                write_json(folder / "failed.json", _failure(error))
        return 1
    return 0


def _refuse_other_settings(config: Mapping[str, Any], folder: Path) -> None:
    """Notice a configuration that was edited by hand.

    Raises:
        ConfigError: if it describes another run than the folder's.
    """
    name = run_id(config)
    if re.search(r"-[0-9a-f]{8}$", folder.name) and name != folder.name:
        raise ConfigError(
            f"{folder / 'config.yaml'} was changed by hand, and the change would change the result",
            got=f"its settings are those of {name}",
            do="undo the change; other settings are a run of their own, started with `python -m dashvlm.train`",
        )
    if checksums.changed(folder, ["config.yaml"]):
        log.warning("config.yaml was changed by hand, in nothing that changes the result")


def _log_to(folder: Path, rank: int) -> logging.FileHandler:
    handler = logging.FileHandler(folder / ("job.log" if rank == 0 else f"job.rank{rank}.log"))
    handlers: list[logging.Handler] = [handler, logging.StreamHandler(sys.stdout)] if rank == 0 else [handler]
    log_to(handlers, "%(asctime)s %(levelname)s %(message)s")
    logging.raiseExceptions = False  # a full disk cannot be logged to it
    logging.captureWarnings(True)
    return handler


def _failure(error: Exception) -> dict[str, Any]:
    """The content of ``failed.json``."""
    return {
        "status": "oom" if isinstance(error, OutOfMemory) else "failed",
        "error": type(error).__name__,
        "message": clean(str(error)),
        "resumable": not isinstance(error, TrainingError | ConfigError | OutOfMemory | ValueError),
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
