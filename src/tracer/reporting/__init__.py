"""The report: facts, then a page, Markdown or JSON that say the same."""
