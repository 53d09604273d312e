"""The networks: the auto-encoder, bodies that turn an image into features, and the classifier around them."""
