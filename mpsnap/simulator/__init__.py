"""The driver that runs nodes in discrete time, in one thread, the same way every time."""
