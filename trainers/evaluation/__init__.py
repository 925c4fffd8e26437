"""Retrieval metrics, catastrophic forgetting, and the promotion gate."""
