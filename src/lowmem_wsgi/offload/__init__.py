"""Calls of a function in short-lived child processes, whose memory all goes back."""
