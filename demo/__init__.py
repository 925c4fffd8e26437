"""``foldtune demo``: the whole loop on this machine, from the logs of a simulated agent to a measured model.

The way in is ``commands.py``.
"""
