"""What the method runs on: what is refused at the door (`given`), the training loop, files, images, and how modules
are run and described.

Nothing here knows what a SuperNet is.
"""
