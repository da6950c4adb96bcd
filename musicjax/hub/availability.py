"""Whether weights are on this computer already, told from the names of files alone."""

from dataclasses import dataclass
from typing import Literal

from musicjax.hub import cache
from musicjax.hub.wheels import mirrored_wheel
from musicjax.registry import Card


@dataclass(frozen=True)
class Availability:
    """Where a card's weights are.

    where        "none" where no address is known
    fetch_bytes  to be fetched before they can be used; 0 also where that is not known beforehand
    least_bytes  where it is not: what the parameters take, as many at the least
    """

    where: Literal["none", "shipped", "cached", "in the mirror", "to fetch"]
    fetch_bytes: int = 0
    least_bytes: int = 0

    @property
    def at_hand(self) -> bool:
        """Whether the model can be loaded without a network."""
        return self.where in ("shipped", "cached", "in the mirror")

    def __str__(self) -> str:
        if self.fetch_bytes:
            return f"{self.fetch_bytes / 1e6:.1f} MB to fetch"
        if self.least_bytes:
            return f"at least {self.least_bytes / 1e6:.0f} MB to fetch"
        return self.where


def availability(card: Card) -> Availability:
    """Where the weights of a card are. Asks no network and reads no file."""
    source = card.source
    if source is None:
        return Availability("none")
    if source.address.startswith("package:"):
        return Availability("shipped")
    if cache.converted_path(source).is_file() or cache.cached_path(source).is_file():
        return Availability("cached")
    if cache.mirror_path(source) is not None or mirrored_wheel(source) is not None:
        return Availability("in the mirror")
    known = source.wheel_bytes or source.size_bytes
    return Availability("to fetch", known, 0 if known else 4 * card.parameters)
