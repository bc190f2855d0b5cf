"""The command line: tenfold."""
