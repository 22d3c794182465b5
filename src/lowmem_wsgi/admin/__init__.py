"""What the operator sees: the status and the forced cleanup."""
