"""How many examples property tests draw: few in the inner loop, many in ``make search``."""

import os


def examples(count: int) -> int:
    """``count``, times ``EXAMPLES`` where the environment has it."""
    return count * int(os.environ.get("EXAMPLES", "1"))
