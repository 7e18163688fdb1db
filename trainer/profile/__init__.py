"""`python -m trainer.profile`: where a training step's time goes, in processes of this machine and without Ray."""
