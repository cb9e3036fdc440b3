"""Announces the method; nothing heavy is imported here."""

from lnlbench.api import MethodEntry, hookimpl


@hookimpl
def lnlbench_methods() -> list[MethodEntry]:
    """Add one method."""
    return [
        MethodEntry(
            name="smallloss",
            target="lnlbench_smallloss.smallloss:SmallLoss",
            summary="Learn only from the samples of a batch whose loss is small.",
        )
    ]
