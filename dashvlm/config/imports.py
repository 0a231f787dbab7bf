"""Names in a configuration: what may stand behind ``_target_``, ``importer`` and the classes of a twin.

A run folder may come from a stranger, so a name is looked up and not imported: only what was marked with
:func:`configurable` can be named, each kind below its own package. Arguments must fit the signature and its types.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import pydantic

from dashvlm.config.rules import NAMED_IN, near
from dashvlm.errors import ConfigError

PACKAGES = dict(zip(("task", "objective", "backbone", "importer"), NAMED_IN.values(), strict=True))
"""Kind of object -> the package it must be defined in."""

_MARKED: dict[str, dict[str, Any]] = {kind: {} for kind in PACKAGES}
_NAME = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)*\.[A-Za-z_0-9]+", re.ASCII)
Named = TypeVar("Named", bound=Callable[..., Any])


def configurable(kind: str) -> Callable[[Named], Named]:
    """Mark a class or function as one that a configuration may name.

    Args:
        kind: one of :data:`PACKAGES`.
    """

    def mark(found: Named) -> Named:
        _MARKED[kind][f"{found.__module__}.{found.__qualname__}"] = found
        return found

    return mark


def resolve(kind: str, name: Any) -> Any:
    """Return the marked object of a name ``package.module.attribute``.

    Raises:
        ConfigError: for anything else.
    """
    package = PACKAGES[kind]
    module = str(name).rpartition(".")[0]
    if _NAME.fullmatch(str(name)) and f"{module}.".startswith(f"{package}."):
        try:
            importlib.import_module(module)  # below our own package; marks what it defines
        except ModuleNotFoundError as error:
            if not str(error.name).startswith(package):
                raise  # a library that is not installed
    found = _MARKED[kind].get(str(name))
    if found is None:
        known = sorted(_MARKED[kind])
        raise ConfigError(
            f"a configuration may not name this as its {kind}", got=str(name)[:200],
            do=f"use what is marked @configurable(\"{kind}\") in {package}{near(str(name), known)}",
        )  # fmt: skip
    return found


def construct(kind: str, name: Any, /, *given: Any, **options: Any) -> Any:
    """Call a marked object with arguments of our own and options from a configuration.

    Raises:
        ConfigError: for an option that it does not take, or of another type than its signature says.
    """
    found = resolve(kind, name)
    try:
        inspect.signature(found).bind(*given, **options)
    except TypeError as error:
        known = [p for p in inspect.signature(found).parameters if p not in ("self", "checkpoint")]
        raise ConfigError(
            f"{name} does not take these options", got=str(error), do=f"its options are {', '.join(known)}"
        ) from None
    hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    for key, value in options.items():
        if key not in hints:
            continue
        try:
            pydantic.TypeAdapter(hints[key]).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise ConfigError(
                f"{name}: {key} is of the wrong type", got=str(value)[:200], do=error.errors()[0]["msg"]
            ) from None
    return found(*given, **options)
