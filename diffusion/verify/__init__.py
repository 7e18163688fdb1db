"""docs/theory.md's statements, measured on data with exact answers, and the faults that they must catch."""
