"""The commands of the SDK. ``foldtune.cli`` finds those of other distributions through entry points."""
