"""The commands of model: command-line parsing."""
