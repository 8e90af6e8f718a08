"""The page: its files and their server."""
