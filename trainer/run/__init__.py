"""A run's folder: where its files are, whose name it is, what happened, who is in charge, how it ended."""
