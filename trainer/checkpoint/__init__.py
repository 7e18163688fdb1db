"""Sharded checkpoints made of named fragments; a checkpoint is complete once its manifest has been written."""
