"""docs/theory.md's claims, measured on data with exact answers, and the faults that they must catch."""
