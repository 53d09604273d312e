"""Where other libraries meet this one. Each module is imported by itself, and by nobody else here."""
