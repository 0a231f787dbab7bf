"""Lightning's precisions that cast everything, kept from what the network does not read.

A batch also holds observations, targets and counts of tokens; only ``inputs`` may be cast.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, final

from pytorch_lightning.plugins.precision import DoublePrecision, FSDPPrecision, HalfPrecision, Precision


def cast_inputs(batch: Any, cast: Callable[[Any], Any]) -> Any:
    """A batch with its network inputs cast, those of other orders and of whole options too."""
    if not isinstance(batch, Mapping) or "inputs" not in batch:
        return batch
    views = {k: [{**view, "inputs": cast(view["inputs"])} for view in batch.get(k) or ()]
             for k in ("reordered", "options") if k in batch}  # fmt: skip
    return {**batch, "inputs": cast(batch["inputs"]), **views}


@final
class Half(HalfPrecision):
    """``bf16-true``: weights, states and inputs in 16 bit."""

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """As the network was published: what it makes itself has the type that it says, not the weights'."""
        yield

    def convert_input(self, data: Any) -> Any:
        """See :func:`cast_inputs`."""
        return cast_inputs(data, super().convert_input)


@final
class Double(DoublePrecision):
    """``64-true``, for comparisons."""

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """See :class:`Half`."""
        yield

    def convert_input(self, data: Any) -> Any:
        """See :func:`cast_inputs`."""
        return cast_inputs(data, super().convert_input)


@final
class Sharded(FSDPPrecision):
    """FSDP's own precision."""

    def convert_input(self, data: Any) -> Any:
        """See :func:`cast_inputs`."""
        return cast_inputs(data, super().convert_input)


def precision_options(precision: str, strategy: str) -> dict[str, Any]:
    """The trainer's options for ``trainer.precision``."""
    plugin: Precision | None = None
    if strategy.startswith("fsdp"):
        plugin = Sharded(precision)  # type: ignore[arg-type]
    elif precision == "64-true":
        plugin = Double()
    elif precision == "bf16-true":
        plugin = Half("bf16-true")
    return {"precision": precision} if plugin is None else {"plugins": [plugin]}
