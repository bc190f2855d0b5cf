"""The classifier as a library."""
