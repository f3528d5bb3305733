"""The native back end: a family's forward pass recorded once, then run by C++ (native/src/program.cpp)."""
