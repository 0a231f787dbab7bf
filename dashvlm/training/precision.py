"""Lightning's precisions that cast everything, kept from what the network does not read.

A batch also holds observations, targets and counts of tokens; only ``inputs`` may be cast.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, final

from pytorch_lightning.plugins.precision import DoublePrecision, FSDPPrecision, HalfPrecision, Precision


class InputsOnly(Precision):
    """Casts the network's inputs, those of other orders and of whole options too, and nothing else."""

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """As the network was published: what it makes itself has the type that it says, not the weights'."""
        yield

    def convert_input(self, data: Any) -> Any:
        """Cast a batch."""
        if not isinstance(data, Mapping) or "inputs" not in data:
            return data
        cast = super().convert_input
        views = {k: [{**view, "inputs": cast(view["inputs"])} for view in data[k]]
                 for k in ("reordered", "options") if k in data}  # fmt: skip
        return {**data, "inputs": cast(data["inputs"]), **views}


@final
class Half(InputsOnly, HalfPrecision):
    """``bf16-true``: weights, states and inputs in 16 bit."""


@final
class Double(InputsOnly, DoublePrecision):
    """``64-true``, for comparisons."""


@final
class Sharded(InputsOnly, FSDPPrecision):
    """FSDP's own precision."""


def precision_options(precision: str, strategy: str) -> dict[str, Any]:
    """The trainer's options for ``trainer.precision``."""
    if strategy.startswith("fsdp"):
        return {"plugins": [Sharded(precision)]}  # type: ignore[arg-type]
    if precision == "64-true":
        return {"plugins": [Double()]}
    return {"plugins": [Half("bf16-true")]} if precision == "bf16-true" else {"precision": precision}
