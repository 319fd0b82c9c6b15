"""Backtests: origin after origin as in operation, with a memory that grows and intervals that are recalibrated."""
