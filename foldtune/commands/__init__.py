"""The commands that need only the SDK. ``foldtune.cli`` finds the others through entry points."""
