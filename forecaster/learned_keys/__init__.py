"""A learned key encoder: the network, its training, its comparison with the built-in one."""
