"""Prefect flows: when, how often, on which machine. No science, and no import here: the plug-in must stay light."""
