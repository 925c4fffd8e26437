"""The routes, one module for each thing that they are about. Who may call them: ``api/access.py``."""
