"""Recipes: read, checked, and run from the command line; what comes out of a merge."""
