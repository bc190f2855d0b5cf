"""Runtimes that turn pixels into logits and features, behind one protocol."""

import sys

# openvino and nncf send usage statistics to Google Analytics if they can import this package, and work without it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
