"""The gateway: an HTTP server where the endpoint of the LLM was."""
