"""What trains: LoRA by role, full training or freezing by role, 4-bit bases.

Roles (language, vision, connector, lm_head) come from the model's YAML, so no list of module
names can leak from the language model into a vision tower that uses the same names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from dashvlm.backbones.base import Backbone
from dashvlm.errors import CheckpointError, ConfigError

LINEAR = (nn.Linear,)


def linear_targets(backbone: Backbone, roles: Sequence[str], leaves: Sequence[str] = ()) -> list[str]:
    """Return the full names of the linear layers of some roles.

    Args:
        backbone: without adapters.
        roles: names from the model's YAML.
        leaves: keep only layers whose last name is one of these; empty keeps all.

    Raises:
        ConfigError: if a role or leaf is unknown or matches nothing; near names are listed.
    """
    linear = [n for n, m in backbone.net.named_modules() if isinstance(m, LINEAR)]
    by_role = {r: [n for n in linear if re.search(pattern, n)] for r, pattern in backbone.roles.items()}
    check_targets({r: [n.rsplit(".", 1)[-1] for n in names] for r, names in by_role.items()}, roles, leaves)
    return [n for r in roles for n in by_role[r] if not leaves or n.rsplit(".", 1)[-1] in leaves]


def check_targets(by_role: Mapping[str, Iterable[str]], roles: Sequence[str], leaves: Sequence[str]) -> None:
    """Check roles and last names against those that a model has.

    Args:
        by_role: role -> last names of its linear layers.
        roles: ``peft.roles``.
        leaves: ``peft.targets``.

    Raises:
        ConfigError: if one is unknown or matches nothing; near names are listed.
    """
    for role in roles:
        if role not in by_role:
            raise ConfigError(
                f"peft.roles names {role!r}, which this model does not have",
                got=role,
                do=f"use one of {', '.join(by_role)}",
            )
    found = sorted({leaf for role in roles for leaf in by_role[role]})
    for leaf in leaves:
        if leaf not in found:
            near = difflib.get_close_matches(leaf, found, n=3, cutoff=0.4)
            raise ConfigError(
                f"peft.targets: {leaf!r} matched no linear layer in roles {', '.join(roles)}",
                got=leaf,
                do=f"did you mean {', '.join(near) or 'one of these'}? the layers are {', '.join(found)}",
            )


def apply_peft(backbone: Backbone, options: Mapping[str, Any]) -> None:
    """Freeze, train or adapt the parts of a backbone, in place.

    Args:
        backbone: freshly loaded.
        options: the ``peft`` group: ``method`` (lora, full, frozen), ``roles``, ``targets``,
            ``rank, alpha, dropout, use_dora, use_rslora``, ``rank_by_role, alpha_by_role``,
            ``train_roles`` (trained in full beside the adapters), ``quantization``.

    Raises:
        ConfigError: if a role or target does not exist.
    """
    method = options["method"]
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    full = list(options.get("train_roles") or ())
    if method == "lora":
        names = linear_targets(backbone, options["roles"], options.get("targets") or ())
        ranks, alphas = (_by_role(backbone, names, options.get(k) or {}) for k in ("rank_by_role", "alpha_by_role"))
        config = peft.LoraConfig(
            rank_pattern=ranks,
            alpha_pattern=alphas,
            r=options["rank"],
            lora_alpha=options["alpha"],
            lora_dropout=options["dropout"],
            use_dora=options["use_dora"],
            use_rslora=options["use_rslora"],
            target_modules=_pattern(names),
            modules_to_save=_tops(backbone, full) or None,
        )
        if options.get("quantization"):
            backbone.net = peft.prepare_model_for_kbit_training(backbone.net, use_gradient_checkpointing=False)
        backbone.net = peft.get_peft_model(backbone.net, config)
        for module in backbone.net.modules():
            if isinstance(module, ModulesToSaveWrapper):
                _in_32_bit(module.modules_to_save["default"])
    elif method == "full":
        for role in full or list(backbone.roles):
            _train_role(backbone, role)
    elif method != "frozen":
        raise ConfigError("unknown peft.method", got=str(method), do="use lora, full or frozen")


def _in_32_bit(module: nn.Module) -> None:
    """Keep a part that trains in full in 32 bit: small updates of 16-bit weights round to nothing.

    The network around it goes on in its own precision.
    """
    if not any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        return
    module.float()
    given: list[torch.dtype] = []

    def widened(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given[:] = [a.dtype for a in args if torch.is_tensor(a) and a.is_floating_point()]
        return tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    def narrowed(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return out.to(given[0]) if given and torch.is_tensor(out) else out

    module.register_forward_pre_hook(widened)
    module.register_forward_hook(narrowed)


def enable_gradient_checkpointing(backbone: Backbone) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    net: Any = backbone.net.get_base_model() if isinstance(backbone.net, peft.PeftModel) else backbone.net
    net.gradient_checkpointing_enable({"use_reentrant": False})


def role_of(backbone: Backbone, parameter: str) -> str:
    """Return the role a parameter belongs to, whatever PEFT has wrapped around its name."""
    name = re.sub(r"^(backbone\.)?(net\.)?(base_model\.model\.)?", "", parameter)
    name = re.sub(r"\.(base_layer|modules_to_save\.default|original_module)(?=\.|$)", "", name)
    module = name.split(".lora_")[0]
    for role, pattern in backbone.roles.items():
        if re.search(pattern, module) or re.search(pattern, module.rsplit(".", 1)[0]):
            return role
    return "head" if name.startswith("head.") else "other"


def count_parameters(backbone: Backbone, others: Mapping[str, nn.Module] | None = None) -> list[dict[str, Any]]:
    """Count parameters by role.

    Returns:
        Rows with ``part, parameters, trainable, adapters``; the last row is the total.
    """
    rows: dict[str, dict[str, Any]] = {}
    named = list(backbone.named_parameters())
    for name, module in (others or {}).items():
        named += [(f"{name}.{n}", p) for n, p in module.named_parameters()]
    for name, parameter in named:
        part = role_of(backbone, name)
        row = rows.setdefault(part, {"part": part, "parameters": 0, "trainable": 0, "adapters": 0})
        is_adapter = ".lora_" in name
        row["adapters" if is_adapter else "parameters"] += _numel(parameter)
        row["trainable"] += _numel(parameter) * parameter.requires_grad
    total = {"part": "total"} | {k: sum(r[k] for r in rows.values()) for k in ("parameters", "trainable", "adapters")}
    return [*rows.values(), total]


def load_trained(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load trained parameters by name, refusing a state that does not fit exactly.

    Raises:
        CheckpointError: if a trainable parameter is missing or a key is foreign.
    """
    needed = {n for n, p in module.named_parameters() if p.requires_grad}
    missing, foreign = sorted(needed - set(state)), sorted(set(state) - needed)
    if missing or foreign:
        raise CheckpointError(
            f"{source}: the checkpoint does not fit this model",
            got=f"{len(missing)} trainable parameters are missing (first: {missing[:1]}), "
            f"{len(foreign)} keys are foreign (first: {foreign[:1]})",
            do="use the configuration that the checkpoint was trained with",
        )
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    other = [n for n, value in state.items() if tuple(value.shape) != shapes[n]]
    if other:
        raise CheckpointError(
            f"{source}: the checkpoint does not fit this model",
            got=f"{other[0]} is {tuple(state[other[0]].shape)}, not {shapes[other[0]]}",
            do="use the configuration that the checkpoint was trained with",
        )
    module.load_state_dict(state, strict=False)


def _by_role(backbone: Backbone, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn role -> value into PEFT's pattern -> value."""
    patterns = {}
    for role, value in values.items():
        mine = [n for n in names if role in backbone.roles and re.search(backbone.roles[role], n)]
        if not mine:
            raise ConfigError(
                f"peft.rank_by_role or alpha_by_role names {role!r}, where no adapter sits",
                got=role,
                do=f"use a role of peft.roles; this model has {', '.join(backbone.roles)}",
            )
        patterns[f"(?:{_pattern(mine)})"] = value
    return patterns


def _pattern(names: Sequence[str]) -> str:
    """A regular expression that matches exactly these module names, grouped to stay short."""
    by_parent: dict[str, set[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        by_parent.setdefault(re.sub(r"\.\d+(?=\.|$)", r".#", parent), set()).add(leaf)
    parts = [
        re.escape(parent).replace(r"\#", "#").replace("#", r"\d+")
        + (r"\." if parent else "")
        + f"(?:{'|'.join(sorted(leaves))})"
        for parent, leaves in sorted(by_parent.items())
    ]
    return "|".join(parts)


def _tops(backbone: Backbone, roles: Sequence[str]) -> list[str]:
    """The outermost modules of some roles, for PEFT's ``modules_to_save``."""
    tops: list[str] = []
    for role in roles:
        pattern = backbone.roles.get(role)
        if pattern is None:
            raise ConfigError(f"peft.train_roles names {role!r}", do=f"use one of {', '.join(backbone.roles)}")
        names = [n for n, _ in backbone.net.named_modules() if re.search(pattern, n + ".") or re.search(pattern, n)]
        tops += [n for n in names if n and not any(n.startswith(t + ".") for t in names if t and t != n)]
    return tops


def _train_role(backbone: Backbone, role: str) -> None:
    if role == "head":
        return  # the objective's own layers always train
    if role not in backbone.roles:
        raise ConfigError(
            f"peft.train_roles names {role!r}, which this model does not have",
            do=f"use one of {', '.join(backbone.roles)}, head",
        )
    for name, parameter in backbone.net.named_parameters():
        module = name.rsplit(".", 1)[0]
        if re.search(backbone.roles[role], name) or re.search(backbone.roles[role], module):
            parameter.requires_grad_(True)


def _numel(parameter: Any) -> int:
    # A 4-bit parameter packs two weights a byte.
    return int(parameter.numel()) * (2 if type(parameter).__name__ == "Params4bit" else 1)
