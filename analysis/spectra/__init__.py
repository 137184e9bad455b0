"""Lanczos and what it gives: extreme eigenpairs, densities by quadrature, traces, negative curvature, and their intervals."""
