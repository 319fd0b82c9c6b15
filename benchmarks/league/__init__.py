"""Training beside what it is made of, over tables of different kind, size and step; see `__main__.py`."""
