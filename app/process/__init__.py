"""One or several operating-system processes: supervisor, fronts, engine process, HTTP protocol."""
