"""The stream worker: data topics to training sets, requests to snapshots and jobs.

The way in is ``worker/process.py``; the way of the data is partitions → training_sets → snapshots → requests.
"""
