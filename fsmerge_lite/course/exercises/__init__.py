"""The exercises of the lessons, one file a lesson: what a reader's function is given, and what is right and wrong."""
