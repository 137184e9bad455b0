"""What the landscape looks like at a checkpoint: Hessian operators, Lanczos, spectra, surfaces, saddle measures."""
