"""The gateway: an HTTP endpoint that stands where the LLM stood."""
