"""Importers and exporters of trained weights, one file a foreign format."""
