"""From the answers of a memory to tensors: live, cached, cross-fitted."""
