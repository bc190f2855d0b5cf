"""One or several operating-system processes: server, workers, HTTP protocol."""
