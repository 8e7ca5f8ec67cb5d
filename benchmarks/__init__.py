"""Benchmarks: ratios taken in one run, side by side with what one would write instead."""
