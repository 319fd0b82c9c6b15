"""Frozen language models: the seam, the one that ships, pretrained ones, and where they are placed."""
