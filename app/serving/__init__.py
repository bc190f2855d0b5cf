"""Between a decoded request and the engine: models, queues, batches. Knows nothing of HTTP."""
