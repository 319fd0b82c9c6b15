"""Files to tables: the one door for every file, the faults that can be in it, and public sets by name."""
