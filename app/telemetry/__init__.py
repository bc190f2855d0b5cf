"""Logs and metrics."""

import os

# When prometheus_client is imported, it takes an empty variable for a folder.
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR", "unset").strip():
    del os.environ["PROMETHEUS_MULTIPROC_DIR"]
