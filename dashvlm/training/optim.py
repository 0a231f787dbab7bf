"""Optimisers and schedules from plain options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dashvlm.errors import ConfigError

Named = Iterable[tuple[str, nn.Parameter]]


def parameter_groups(named: Named, role_of: Callable[[str], str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Args:
        named: names and parameters; frozen ones are left out.
        role_of: role of a parameter by its name.
        options: the ``optim`` group: ``lr, weight_decay, lr_scale`` (role -> factor; a key that begins with
            ``/`` is a regular expression of parameter names and goes before roles).

    Returns:
        Groups for a torch optimiser. One-dimensional parameters (norms, biases) do not decay.
    """
    scale = options.get("lr_scale") or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen = set()
    for name, parameter in named:
        if parameter.requires_grad:
            role = next((k for k in scale if k.startswith("/") and re.search(k[1:], name)), role_of(name))
            seen.add(role)
            decay = float(options["weight_decay"]) if parameter.ndim > 1 else 0.0
            key = float(options["lr"]) * float(scale.get(role, 1.0)), decay
            groups.setdefault(key, []).append(parameter)
    unknown = sorted(set(scale) - seen)
    if unknown:
        raise ConfigError(
            "optim.lr_scale names roles that do not train",
            got=", ".join(unknown),
            do=f"use of {', '.join(sorted(seen))}",
        )
    return [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()]


def build_optimizer(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimiser named by ``optim.name``: adamw, adamw8bit, paged_adamw8bit."""
    name = options["name"]
    settings: dict[str, Any] = {"betas": tuple(options["betas"]), "eps": float(options["eps"])}
    if name == "adamw":
        return torch.optim.AdamW(groups, **settings)
    kinds = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit"}
    if name not in kinds:
        known = ", ".join(["adamw", *kinds])
        raise ConfigError("unknown optim.name", got=str(name), do=f"use one of {known}")
    import bitsandbytes

    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kinds[name])(groups, **settings)
    return made


def schedule(name: str, total_steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the optimiser step.

    Args:
        name: ``constant``, ``linear`` or ``cosine`` (both down to 0).
        total_steps: optimiser steps of the whole run.
        warmup: steps of linear warm-up if at least 1, a share of ``total_steps`` below 1.

    Example:
        >>> f = schedule("linear", 10, 2)
        >>> [round(f(s), 2) for s in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    first = int(warmup) if warmup >= 1 else round(warmup * total_steps)
    rest = max(total_steps - first, 1)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        share = min((step - first) / rest, 1.0)
        if name == "linear":
            return 1.0 - share
        if name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * share))
        return 1.0

    if name not in ("constant", "linear", "cosine"):
        raise ConfigError("unknown optim.schedule", got=name, do="use constant, linear or cosine")
    return factor
