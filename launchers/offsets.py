"""How far a partition may be committed while several of its events are worked on at once."""


class Offsets:
    """The events of one partition that are taken and not committed yet."""

    def __init__(self) -> None:
        self._settled: dict[int, bool] = {}

    def take(self, offset: int) -> bool:
        """Note an event as begun; ``False`` for one that is known, delivered again after a rebalance."""
        if offset in self._settled:
            return False
        self._settled[offset] = False
        return True

    def settle(self, offset: int) -> None:
        """Note an event as done with."""
        self._settled[offset] = True

    def committable(self) -> int | None:
        """The offset up to which (exclusive) all events taken are settled; ``None`` while the oldest one is not."""
        position = None
        for offset in sorted(self._settled):
            if not self._settled[offset]:
                break
            position = offset + 1
        return position

    def committed(self, position: int) -> None:
        """Forget what lies below a committed position."""
        self._settled = {offset: done for offset, done in self._settled.items() if offset >= position}
