"""The record of accuracy: every arm, and peers, on the same windows, scored by the same code.

`python -m benchmarks.accuracy` begins in `__main__.py`. Our arms are in `arms.py`; `peers.py` has each peer trained in
a process of the environment that `make peers` makes (`peer_worker.py`); `record.py` makes tables and the picture;
`published.py` holds figures of papers.
"""
