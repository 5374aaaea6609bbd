"""Floor 5: the frozen policy, its safe archive, and the registry (door 2)."""
