"""Floor 8: an HTTP gateway where the LLM endpoint was."""
