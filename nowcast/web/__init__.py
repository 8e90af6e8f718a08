"""What a browser reads."""
