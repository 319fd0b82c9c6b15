"""How fast everything is, each operation beside its straightforward alternative, and how its cost grows.

One program for all of it (`__main__.py`); a part of the table is a module. Both sides of a ratio are measured in the
same run, in turns (`turns.py`), so that what else the machine does meets both alike.
"""
