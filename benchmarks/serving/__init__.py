"""Comparison of Tenfold with other servers of the same network on one machine. See benchmarks/README.md."""
