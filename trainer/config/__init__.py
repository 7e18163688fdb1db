"""The configuration of a run: frozen models that are read from YAML. Imports no torch; may use `files`, `errors`."""
