"""``foldtune demo``: the whole loop on this machine, from the logs of a simulated agent to an evaluated model.

The way in is ``commands.py``; ``pipeline.py`` has the stages in order, and ``loop.py`` those of an unattended run.
"""
