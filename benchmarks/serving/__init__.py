"""Tenfold beside other servers of the same network, on one machine: see benchmarks/README.md."""
