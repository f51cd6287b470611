"""Cameras, meshes and rendering, independent of any model."""
