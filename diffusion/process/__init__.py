"""The forward process: schedules, betas, processes and Gaussian kernels."""
