"""Worker processes that do not run the caller's script again.

A process that Python spawns imports the script that it was started from, so a script without
``if __name__ == "__main__"`` would start itself over and over. Workers here need functions of this package only.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from multiprocessing import context
from typing import Any


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Hide where the main module comes from; the new process then has an empty one."""
    main: Any = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


class Spawned(context.SpawnProcess):
    """A fresh process."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_script():
            return context.SpawnProcess._Popen(process_obj)


class Forked(context.ForkServerProcess):
    """A fork of a server that has loaded the heavy modules."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_script():
            return context.ForkServerProcess._Popen(process_obj)


class SpawnContext(context.SpawnContext):
    """``multiprocessing.get_context("spawn")``, without the caller's script."""

    Process = Spawned


class ForkServerContext(context.ForkServerContext):
    """``multiprocessing.get_context("forkserver")``, without the caller's script."""

    Process = Forked
