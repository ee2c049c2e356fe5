"""Diffusion transformers with the Polynomial Mixer (PoM), in JAX.

Letters in shapes: B batch, T frames, H W height and width, N context tokens, M query tokens, D width,
E expanded width (expansion times D), K degree, C channels, V views (an image and its mirror image), L layers.
"""
