"""The client, the batching of logs, and the deployment of models."""
