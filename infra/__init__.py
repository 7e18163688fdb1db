"""How DualView is run: the local stack, in Python; container images, cluster files and monitoring, in files."""
