"""The workers of a site: record what each does, and replace a worker in time."""
