"""What samples are compared with: training images, held-out ones, and baselines that put a distance on a scale."""
