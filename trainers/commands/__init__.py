"""The commands that need a model or a snapshot."""
