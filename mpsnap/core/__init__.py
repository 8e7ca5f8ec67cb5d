"""The pure core: no clock, randomness, I/O, threads, processes or logging."""
