"""The network and the closed form as pure functions of tensors: they never search, read or write."""
