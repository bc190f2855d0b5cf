"""Results for people: the bundle's README.md and plots, and the table of an evaluation."""
