"""Being asked to stop: a checkpoint where there is something to keep, one line that says how to go on, no traceback.

SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 mean the same: stop now. While a network trains, the signal is only noted
and the next whole step ends the run (:meth:`dashvlm.training.callbacks.Checkpoint`); everywhere else it raises
:class:`Interrupted` at once. Imports nothing but the standard library, so that a process can be stopped early.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
AGAIN_S = 2.0
"""One Ctrl-C may arrive twice, from the terminal and from the parent; later than this it was typed twice."""


class Interrupted(BaseException):
    """The process was asked to stop.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")

    @property
    def code(self) -> int:
        """The exit code that shells use: 128 and the signal's number, such as 130 for Ctrl-C and 143 for SIGTERM."""
        return 128 + self.signum


@dataclass
class _State:
    received: int | None = None
    at: float = 0.0
    noting: bool = False
    child: subprocess.Popen[Any] | None = None


_state = _State()


def received() -> int | None:
    """The signal that asked this process to stop, if one did."""
    return _state.received


def forget() -> None:
    """For a process that goes on after it was asked to stop, such as a notebook's."""
    _state.received = None


def _on_signal(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.child is not None:
        _state.child.send_signal(signum)  # it saves what it has, and this process waits for it
    if _state.received is not None:
        if now - _state.at > AGAIN_S and _state.child is None:
            os._exit(128 + signum)
        return
    _state.received, _state.at = signum, now
    if _state.child is None and not _state.noting:
        raise Interrupted(signum)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn signals into :class:`Interrupted` for a while; what was ignored before, as by ``nohup``, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in STOPPING}
    _state.received, _state.noting, _state.child = None, False, None
    install()
    try:
        yield
    except Interrupted:
        before = dict.fromkeys(STOPPING, signal.SIG_IGN)  # the same one may arrive again while the process ends
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


def run(main: Callable[[], int]) -> int:
    """Run a verb, its imports too; asked to stop, print one line.

    Returns:
        Its exit code, or 128 and the signal's number.
    """
    try:
        with stoppable():
            return main()
    except Interrupted as stop:
        print(f"\n{stop}; type the same command to go on", file=sys.stderr)
        return stop.code


def install() -> None:
    """Take the signals over, again where a library has put its own handler in between."""
    for signum in STOPPING:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _on_signal)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Only note signals, for code that asks :func:`received` itself; raises :class:`Interrupted` at the end."""
    before, _state.noting = _state.noting, True
    try:
        yield
    finally:
        _state.noting = before
    if _state.received is not None:
        raise Interrupted(_state.received)


def wait_for(child: subprocess.Popen[Any]) -> int:
    """Wait for a process that does the work, and hand every signal on to it.

    Returns:
        Its exit code, 128 and the signal's number if a signal ended it.
    """
    own = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {s: signal.getsignal(s) for s in STOPPING} if own else {}
    _state.child = child
    try:
        if own:
            install()
        code = child.wait()
    finally:
        _state.child = None
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
    code = 128 - code if code < 0 else code
    if _state.received is not None:
        theirs: Callable[[int, None], Any] | int | None = before.get(_state.received)
        if callable(theirs) and theirs not in (_on_signal, signal.default_int_handler):
            theirs(_state.received, None)  # a launcher's, which puts the job into the queue again
        return 128 + _state.received
    return code


def is_stop(code: int) -> bool:
    """Whether an exit code says that a process was asked to stop."""
    return code - 128 in STOPPING


def name_of(code: int) -> str:
    """The signal behind an exit code."""
    return signal.Signals(code - 128).name


def end_with_parent(signum: int = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent process ends, however it ends. Linux only; nothing elsewhere."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Hold the signals back; processes that start meanwhile never get them, and end with this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number: int) -> None:
    """For a loader's worker, whose parent is the fork server: end with it, however it ends."""
    end_with_parent(signal.SIGKILL)
