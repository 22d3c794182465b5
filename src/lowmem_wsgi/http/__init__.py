"""WSGI as it is: a request and its response, bodies, paths, refusals. Knows no memory."""
