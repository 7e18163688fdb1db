"""The forward process: schedules over log-SNR, the SDEs that have them, and the Gaussian kernels between two times."""
