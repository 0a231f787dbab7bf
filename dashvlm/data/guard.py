"""Work on a stranger's file in a process that may hang, crash or ask for too much memory without harm.

``python -m dashvlm.data.guard`` is that process: it reads requests from its standard input and answers on its
standard output until the input ends. A timer of the kernel ends it when a request takes too long, also where
the time is spent inside a decoder or waiting for a file that never gives data.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dashvlm.errors import DashVLMError, VideoError
from dashvlm.safety import signals

_idle: queue.LifoQueue[_Process] = queue.LifoQueue()
_owner = os.getpid()


@dataclass(frozen=True)
class Limits:
    """What one request may use.

    Attributes:
        timeout_s: seconds.
        memory_gb: 10^9 bytes beyond what the process has when it starts.
    """

    timeout_s: float = 60.0
    memory_gb: float = 8.0


def guarded(limits: Limits, path: Path, module: str, function: str, *arguments: Any) -> Any:
    """Call ``dashvlm.<module>.<function>(*arguments)`` in another process and return its result.

    Args:
        limits: of the call.
        path: the file that is worked on, for messages.
        module: within the package.
        function: within the module.
        arguments: of the call; pickled, as is the result.

    Raises:
        VideoError: if the limits are exceeded or the process dies.
        Exception: what the function raises.
    """
    helper = _take()
    answer = helper.ask((limits, module, function, arguments))
    if answer is None:
        raise VideoError(f"{path}: {helper.died(limits)}", do="replace the file, or raise the limit if it is sound")
    _idle.put(helper)
    kind, content = answer
    if kind == "error":
        raise content
    return content


def _take() -> _Process:
    """An idle process, or a new one; a forked child has none of its parent's."""
    global _idle, _owner
    if _owner != os.getpid():
        _idle, _owner = queue.LifoQueue(), os.getpid()
    with contextlib.suppress(queue.Empty):
        while True:
            helper = _idle.get_nowait()
            if helper.process.poll() is None:
                return helper
    return _Process()


class _Process:
    """One process that serves requests."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # Its own group: Ctrl-C is for the trainer, which then closes our standard input.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dashvlm.data.guard"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip

    def ask(self, request: Any) -> Any:
        """Send a request and wait; None if the process ended instead of answering."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            _send(stdin, request)
            return _receive(stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        except BaseException:  # interrupted while waiting: the answer would be taken for the next one's
            self.end()
            raise

    def died(self, limits: Limits) -> str:
        """Why there was no answer."""
        code = self.process.wait()
        self._close()
        if code == -signal.SIGALRM:
            return f"took longer than data.decode_timeout_s={limits.timeout_s:g}"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder's process died ({how})"

    def end(self) -> None:
        """Kill the process."""
        with contextlib.suppress(OSError):
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]


@atexit.register
def _end_all() -> None:
    if _owner != os.getpid():
        return
    with contextlib.suppress(queue.Empty):
        while True:
            _idle.get_nowait().end()


def _send(file: IO[bytes], content: Any) -> None:
    data = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    file.write(len(data).to_bytes(8, "little"))
    file.write(data)
    file.flush()


def _receive(file: IO[bytes]) -> Any:
    head = file.read(8)
    if len(head) < 8:
        raise EOFError
    data = file.read(int.from_bytes(head, "little"))
    return pickle.loads(data)  # between our own processes


def _limit_memory(gigabytes: float) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = used + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def serve() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    requests = sys.stdin.buffer
    for signum in signals.STOPPING:  # those to every process of a job, too: it ends with its input
        signal.signal(signum, signal.SIG_IGN)
    while True:
        try:
            limits, module, function, arguments = _receive(requests)
        except EOFError:
            return
        call = getattr(importlib.import_module(f"dashvlm.{module}"), function)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limits.timeout_s)
        try:
            with contextlib.suppress(OSError, ValueError):  # not on every system
                _limit_memory(limits.memory_gb)
            answer: tuple[str, Any] = ("result", call(*arguments))
        except MemoryError:
            answer = ("error", VideoError(f"needs more memory than data.decode_memory_gb={limits.memory_gb:g}"))
        except (DashVLMError, OSError) as error:
            answer = ("error", error)
        except Exception as error:
            answer = ("error", VideoError(f"{type(error).__name__} while reading a video", got=str(error)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)


if __name__ == "__main__":
    serve()
