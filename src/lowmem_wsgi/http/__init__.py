"""WSGI parts: requests and responses, bodies, paths, refusals. Nothing about memory."""
