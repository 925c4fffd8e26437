"""The adapter for this machine: a training is a subprocess of the launcher."""
