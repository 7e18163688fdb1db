"""diffusers' schedulers and folders, read and written."""
