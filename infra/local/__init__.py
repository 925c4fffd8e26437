"""Apache Kafka and an S3 server on this machine, as child processes, without Docker.

``stack`` puts them together; ``server`` runs one of them under ``supervise``; ``jars`` gets them, checked against the
lock files; ``kafka`` and ``s3`` hold their settings and say when they are healthy.
"""
