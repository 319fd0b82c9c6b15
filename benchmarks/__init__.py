"""Measurements: each script prints a table and the command that repeats it.

Nothing here is needed to use the project.
"""
