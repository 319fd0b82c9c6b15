"""Linear map and value gate that go on with what happens: states of a run, and its backtests."""
