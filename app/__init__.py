"""The web service: HTTP and JSON around the classifier. It never imports torch."""
