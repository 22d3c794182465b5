"""The rules for requests, one module each. WSGI in, WSGI out; no memory levers here."""
