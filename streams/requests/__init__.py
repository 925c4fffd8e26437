"""Fine-tune requests, from their event to their final status, and the retraining policy, which creates some.

Entry point: ``coordinator.py``; ``lifecycle.py`` is the state machine.
"""
