"""The claims of docs/theory.md, measured on data with exact answers, and the mutants that they must catch."""
