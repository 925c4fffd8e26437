"""The command groups of ``foldtune``, each in a module that is imported when it is called."""
