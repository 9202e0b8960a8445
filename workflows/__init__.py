"""What the recipes run: MONAI and ignite engines assembled from the parts of `medseg`."""
