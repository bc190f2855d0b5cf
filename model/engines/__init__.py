"""Runtimes that turn pixels into logits and features, behind one protocol."""
