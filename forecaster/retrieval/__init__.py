"""What training asks of a memory, found once and kept, and how that is cross-fitted."""
