"""Floor 3: surrogates, acceptors, novelty; cross-fitted on training traces."""
