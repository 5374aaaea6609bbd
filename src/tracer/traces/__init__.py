"""Traces of a teacher: reading logs, the two rooms, and the store."""
