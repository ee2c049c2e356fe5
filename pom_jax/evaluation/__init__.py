"""Scores of samples: against held-out real images, and beside what simple baselines reach."""
