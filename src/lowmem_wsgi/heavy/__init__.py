"""Heavy packages: imported late, watched, and paid for once."""
