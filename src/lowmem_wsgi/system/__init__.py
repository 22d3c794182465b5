"""Read the operating system: one parser for each kernel file, and no policy."""
