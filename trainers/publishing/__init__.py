"""What a training publishes: artifacts, the manifest, statuses and the model-ready event."""
