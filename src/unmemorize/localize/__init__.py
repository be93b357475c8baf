"""Where a denoiser holds what it memorized. One technique per file."""
