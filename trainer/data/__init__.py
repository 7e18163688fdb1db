"""Image data: sources, their preparation as a Ray Data job, and the prepared format that workers map."""
