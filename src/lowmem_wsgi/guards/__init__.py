"""The rules a request must keep, one a module. WSGI in, WSGI out; no memory levers here."""
