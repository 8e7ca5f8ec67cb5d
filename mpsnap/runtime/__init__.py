"""The driver that runs nodes as processes."""
