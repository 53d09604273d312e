"""Where other libraries meet this one. Each module is imported by itself: by its users, or by its command."""
