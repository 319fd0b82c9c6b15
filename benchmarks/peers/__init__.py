"""Other packages on the same windows: each runs in the peers' environment, its forecasts are scored by our code."""
