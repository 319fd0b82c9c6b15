"""Fitting: the closed form, then steps of gradient descent that can be killed at any moment."""
