"""`tenfold classify PATHS`, which is also `python -m app.classify PATHS`."""
