"""Networks that give each pixel of an image a score of each class, and WAE around any of them."""
