"""The Open Inference Protocol v2 (the REST protocol of KServe and Triton) for the routes under /v2."""
