"""How far a partition may be committed whose records are worked on in parallel."""


class InFlightOffsets:
    """The events of one partition that are in flight, and how far it may be committed while several are."""

    def __init__(self) -> None:
        self._settled: dict[int, bool] = {}

    def start(self, offset: int) -> bool:
        """Add an offset; ``False`` where it is in flight already, redelivered after a rebalance."""
        if offset in self._settled:
            return False
        self._settled[offset] = False
        return True

    def settle(self, offset: int) -> None:
        """Mark an offset's event as done."""
        self._settled[offset] = True

    def forget(self, offset: int) -> None:
        """Take back the start of an offset."""
        del self._settled[offset]

    def committable(self) -> int | None:
        """The offset up to which (exclusive) all events are settled; ``None`` while the oldest one is not."""
        position = None
        for offset in sorted(self._settled):
            if not self._settled[offset]:
                break
            position = offset + 1
        return position

    def committed(self, position: int) -> None:
        """Drop the offsets below a committed position."""
        self._settled = {offset: settled for offset, settled in self._settled.items() if offset >= position}
