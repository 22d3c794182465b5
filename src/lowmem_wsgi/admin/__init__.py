"""The operator's routes: the status and the forced cleanup."""
