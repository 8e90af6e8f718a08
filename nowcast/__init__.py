"""Precipitation nowcasting: radar files in, verified forecasts and maps out."""

__version__ = "0.1.0"
