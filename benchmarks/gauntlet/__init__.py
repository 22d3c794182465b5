"""The 512 MB gauntlet: Python servers beside each other under one memory limit."""
