"""The ops protocol (`ops`) and the back ends that implement it: `reference` (NumPy) and `cpu` (native)."""
