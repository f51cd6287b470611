"""One folder per paper: model, losses, augmentation and training under the same file names."""
