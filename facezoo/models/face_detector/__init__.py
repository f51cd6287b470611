"""The face detector: network, losses, augmentation and training."""
