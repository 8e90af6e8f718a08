"""Files in, store out."""
