"""Exports of training sets as Parquet files.

Entry point: ``command_handler.py``; ``export.py`` does the I/O, ``export_child.py`` the computation.
"""
