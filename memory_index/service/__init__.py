"""The memory over the network: Arrow Flight, and what protects, watches and runs it."""
