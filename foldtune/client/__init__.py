"""The SDK's client, what it sends through, and the deployment of models."""
