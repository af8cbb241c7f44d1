"""What the method runs on: the training loop, files, images, and how modules are run and described.

Nothing here knows what a SuperNet is.
"""
