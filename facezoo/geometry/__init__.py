"""Cameras, meshes and rendering: geometry that knows nothing of any model."""
