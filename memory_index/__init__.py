"""A searchable memory of the past: windows of time series, and the guard that keeps their future from a query."""
