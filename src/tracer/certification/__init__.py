"""Floor 4: propose on training traces, dispose on shadow traces."""
