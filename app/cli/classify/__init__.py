"""The command line's classifier of files: python -m app.classify PATHS, or `tenfold classify PATHS`."""
