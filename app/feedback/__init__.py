"""Predictions that are kept on disk, so that clients can send the right labels later."""
