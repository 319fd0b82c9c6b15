"""The torch model that joins a lookback window with its retrieved neighbours.

It is not part of this version. What forecasts today is the memory alone: `memory_index`, and the commands
`cli forecast --index` and `cli evaluate --index`.
"""
