"""Checkpoints, decomposed images and Caffe files: written completely or not at all, and checked when read."""
