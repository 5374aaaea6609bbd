"""Floor 8: the command line. Parse, call, print."""

from tracer.cli.app import main

__all__ = ["main"]
