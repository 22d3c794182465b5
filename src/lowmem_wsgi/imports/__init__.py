"""Heavy packages: what loading them costs, and how to load them at their first use."""
