"""The training loop and the files: what the method runs on. Nothing here knows of merging."""
