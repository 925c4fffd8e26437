"""Turns ``training-jobs`` into runs, each once: locally as a subprocess, on AWS as a job of AWS Batch.

The port is ``port.py``; the way in is ``job_consumer.py`` for a process, ``infra.aws.handlers`` for functions.
"""
