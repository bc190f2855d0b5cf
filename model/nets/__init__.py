"""The networks, and the table that finds them by name."""
