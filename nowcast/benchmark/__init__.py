"""Networks trained and compared alike."""
