"""Prefect flows: when, how often, on which machine; no science. Nothing is imported here, to keep the plug-in light."""
