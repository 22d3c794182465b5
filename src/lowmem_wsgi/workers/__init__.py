"""The workers of a site: what each is doing, and a fresh one in time."""
