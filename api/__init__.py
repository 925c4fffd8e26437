"""The HTTP API: ``routes.py`` says what each route answers, without a web framework.

The way in is ``server.py``, which serves it in a cluster; ``infra.aws.handlers`` serves the same from Lambda.
"""
