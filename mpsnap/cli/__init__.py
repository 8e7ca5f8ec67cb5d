"""The command line: the only place that prints or picks concrete classes."""

from mpsnap.cli.main import main

__all__ = ["main"]
