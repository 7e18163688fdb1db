"""What a run depends on, as frozen models that are read from YAML; no torch. May import `files` and `errors`."""
