"""Kernels in C++ for what torch ops do slowly on a CPU; each has its equal in torch ops, which the tests compare."""
