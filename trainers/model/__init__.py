"""The encoder: access to base models, loading and running them, tokens, and the split into frozen and trained parts."""
