"""The vocabulary that all of kvern shares. Imports nothing of kvern; holds no arrays, clocks or I/O."""
