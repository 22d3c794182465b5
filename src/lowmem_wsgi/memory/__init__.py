"""Read the memory figures and act on them. Needs no web server."""
