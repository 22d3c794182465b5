"""Call a function in a short-lived child process, whose memory all goes back to the system."""
