"""Embedding and training efficiently: the frozen-prefix cache, memory bounds, several processes."""
