"""Webhooks: what has become of requests, and why the retraining policy acts or cannot."""
