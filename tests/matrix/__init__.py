"""Every server with every framework: `make matrix`."""
