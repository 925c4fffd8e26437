"""Runs each job of ``training-jobs`` once: as a subprocess of this machine, or as a job of AWS Batch.

``port.py`` is the port that a launcher implements, ``execution.py`` the state machine that drives any of them. It is
called by ``job_consumer.py`` in a process and by ``batch/dispatcher.py`` in functions.
"""
