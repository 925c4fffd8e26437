"""The training job: snapshot in, model on S3 out.

The way in is ``job.py``; ``pipeline.py`` is the recipe from top to bottom.
"""
