"""Benchmarks: every method on the same originals and images, many times over; and the tour, the main job once."""
