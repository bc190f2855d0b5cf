"""Training: recipes, data, augmentation, the loop, evaluation and export. Not needed for serving."""
