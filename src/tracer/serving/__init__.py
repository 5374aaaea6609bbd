"""Floor 6: the router and its teachers. Never imports the training side."""
