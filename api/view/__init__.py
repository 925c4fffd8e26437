"""What the API knows of the system, read from topics and kept in memory: ``system.py`` is the way in.

``follower.py`` reads the topics; each other module keeps what one of them says.
"""
