"""`python -m lowmem_wsgi`: run the command when its script is not on the PATH."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
