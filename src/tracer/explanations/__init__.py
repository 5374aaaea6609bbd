"""What the surrogate owns, what it defers, and why: the five artefacts of the paper, and answers about one input."""
