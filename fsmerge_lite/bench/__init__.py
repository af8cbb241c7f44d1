"""Benchmarks of all methods on the same originals and images, and the tour."""
