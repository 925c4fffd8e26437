"""The commands that ``foldtune-server`` adds for workers, dead letters and erasures."""
