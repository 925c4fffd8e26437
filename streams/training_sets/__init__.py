"""The rolling training sets: events of the data topics in immutable segments, folded into examples on demand.

Entry points: ``ingest.py`` writes, ``store.py`` reads, ``compaction.py`` maintains.
"""
