"""Benchmarks: not imported by the package. Each prints what it measured and writes it under ``results``."""
