"""Retrieval metrics, the promotion gate, and what a model has forgotten."""
