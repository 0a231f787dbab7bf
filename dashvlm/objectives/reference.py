"""The frozen policy that GRPO and DPO compare with: no copy of the network, only of what trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import peft
import torch
from torch import Tensor, nn

from dashvlm.errors import ConfigError


class Reference:
    """Lends a backbone the weights it is compared with, and switches its dropout off for good.

    Args:
        backbone: the policy.
        kind: ``start``: what trains is put back to where it started; ``base``: adapters are switched off;
            ``none``.
    """

    def __init__(self, backbone: Any, kind: str) -> None:
        self.backbone, self.kind = backbone, kind
        self._start: dict[str, Tensor] = {}
        for module in backbone.modules():  # policy and reference must differ in their weights alone
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if kind == "base" and not isinstance(backbone.net, peft.PeftModel):
            raise ConfigError(
                "objective.reference=base switches adapters off, and there are none", do="use objective.reference=start"
            )

    def remember(self) -> None:
        """Keep what trains as it is now; called before the first step, and again before a resume."""
        if self.kind == "start":
            self._start = {n: p.detach().clone() for n, p in self._trained()}

    @contextlib.contextmanager
    def use_reference_weights(self) -> Iterator[None]:
        """A context in which the backbone is the reference, in evaluation mode and without gradients."""
        training, now = self.backbone.training, {n: p.data for n, p in self._trained()}
        self.backbone.eval()
        try:
            with torch.no_grad(), self._switched_off():
                for name, parameter in self._trained():
                    if self.kind == "start":
                        parameter.data = self._start[name].to(parameter.device)
                # Autocast keeps 16-bit copies of parameters by object; they would be the policy's.
                torch.clear_autocast_cache()
                yield
        finally:
            for name, parameter in self._trained():
                parameter.data = now[name]
            torch.clear_autocast_cache()
            self.backbone.train(training)

    def _switched_off(self) -> Any:
        return self.backbone.net.disable_adapter() if self.kind == "base" else contextlib.nullcontext()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.backbone.named_parameters() if p.requires_grad or n in self._start]
