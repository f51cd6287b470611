"""Preprocessing: images in, aligned and normalized face crops out."""
