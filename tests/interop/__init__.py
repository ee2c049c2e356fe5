"""Comparisons with PyTorch and diffusers, which `make test-interop` installs."""
