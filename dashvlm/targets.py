"""Turn a dotted name from a configuration into a class or function of dashvlm, and nothing else.

The object that was found is checked, not its name: an alias such as ``dashvlm.x.os.system`` would
pass a check of the prefix.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from dashvlm.errors import ConfigError

PREFIXES = ("dashvlm.",)


def resolve(name: str) -> Any:
    """Import ``package.module.attribute``.

    Raises:
        ConfigError: if the name does not exist or the object does not belong to an allowed package.
    """
    module, _, attribute = name.rpartition(".")
    do = f"name a class or function defined in one of {', '.join(PREFIXES)}"
    if not any(name.startswith(prefix) for prefix in PREFIXES):
        raise ConfigError("a configuration may not run this", got=name, do=do)
    try:
        found = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError) as error:
        raise ConfigError("the configuration names something that is not there", got=name, do=do) from error
    home = getattr(found, "__module__", "")
    defined = f"{home}.{getattr(found, '__qualname__', '')}"
    if not (inspect.isclass(found) or inspect.isfunction(found)) or defined != name:
        raise ConfigError("a configuration may not run this", got=f"{name} is {defined or found!r}", do=do)
    return found
