"""The tests, laid out like the code."""

import os

# Read by torch when it is imported, here and in child processes. OpenMP threads that wait for each other while another
# program uses the cores make small networks ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
