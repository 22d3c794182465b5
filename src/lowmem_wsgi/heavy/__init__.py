"""Heavy work without the weight: late imports, child processes."""
