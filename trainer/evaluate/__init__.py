"""What a trained model is worth, measured on its package: the variational bound and the Frechet distance of samples."""
