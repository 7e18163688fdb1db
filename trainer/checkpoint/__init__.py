"""Sharded checkpoints of named fragments, complete only once their manifest is there."""
