"""Where foldtune runs: local servers, AWS, Docker, Kubernetes, Grafana.

The ways in are ``local/commands.py`` and ``aws/handlers.py``.
"""
