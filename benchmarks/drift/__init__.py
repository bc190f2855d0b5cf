"""How soon drift of the images is noticed."""
