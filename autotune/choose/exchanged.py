"""What a row had before it took a configuration that the server launches at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.untrusted import Untrusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """The row's own configuration, and what the exchange costs.

    Attributes:
        own: The configuration that was chosen for the row by itself.
        loss: How much slower the row is now, as a share of its own latency; of a MoE layer that of
            its kernels together. Below 0 where it is faster.
    """

    own: KernelConfig
    loss: float

    def as_dict(self) -> dict[str, Any]:
        """The exchange as JSON-ready values."""
        return {"own": self.own.as_dict(), "loss": self.loss}


class ExchangedTable(Untrusted):
    """An exchange as ``Exchanged.as_dict`` writes it."""

    own: dict[str, Any]
    loss: Annotated[float, Field(gt=-1, allow_inf_nan=False)]

    def exchanged(self, op: LoraOp) -> Exchanged:
        """The exchange of a configuration of this op.

        Raises:
            SpaceError: The configuration is none of the op.
        """
        return Exchanged(own=KernelConfig.from_mapping(op, self.own), loss=self.loss)
