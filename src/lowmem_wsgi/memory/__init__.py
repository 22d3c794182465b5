"""Figures and levers of memory. Knows no web server; usable without one."""
