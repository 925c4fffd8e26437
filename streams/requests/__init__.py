"""The life of a fine-tune request, from its event to its final status, and the policy that makes requests."""
