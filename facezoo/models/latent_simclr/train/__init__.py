"""Training of StyleGAN2, of its inversion, and of SimCLR on the codes."""
