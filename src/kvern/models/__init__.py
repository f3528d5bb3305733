"""Model families: what their files say, what their tensors are called, and their forward pass."""
