"""A run's folder: paths, identity, journal, the attempt in charge, and the summary."""
