"""The HTTP API: one parser, one set of answers, and a front for aiohttp; ``infra.aws`` is the front for Lambda.

The way in is ``server.py``.
"""
