"""The operating system: one parser for each of the kernel's files, and no policy."""
