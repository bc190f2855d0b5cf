"""HTTP: requests and responses, their limits and errors."""
