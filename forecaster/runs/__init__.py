"""A run: the folder that a training makes, what it says of itself, its weights and its intervals."""
