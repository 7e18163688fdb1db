"""How DualView is run: the local stack here; images, cluster files and monitoring beside it."""
