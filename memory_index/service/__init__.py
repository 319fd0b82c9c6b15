"""The memory over the network: HTTP, and what protects, watches and runs it."""
