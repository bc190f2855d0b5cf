"""Runtimes that turn pixels into logits, behind one protocol."""
