"""The web service: HTTP and JSON around the classifier. It never imports torch."""

__version__ = "0.1.0"
