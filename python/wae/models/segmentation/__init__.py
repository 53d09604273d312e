"""Segmentation networks, which score every class for each pixel of an image, and WAE around any of them."""
