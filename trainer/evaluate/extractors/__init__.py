"""Features of images, which distances between sets of images are told by."""
