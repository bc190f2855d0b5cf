"""The commands of the library: command-line parsing only."""
