"""Fitting and training a run: closed form first, then, if asked for, a network."""
