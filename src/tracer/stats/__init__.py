"""Floor 0: mathematics on counts. Nothing here knows a trace or a label."""
