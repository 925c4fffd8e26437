"""Which partitions this worker owns, the state it keeps for each in a changelog, and the offsets stored with it."""
