"""What many tests need: real servers and containers, clients, fakes."""
