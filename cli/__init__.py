"""The command line: thin commands that parse, make one library call and print.

Nothing here is imported by `memory_index` or `forecaster`. Start with `cli/main.py`.
"""

__version__ = "0.1.0"
