"""Active learning: difficulty, gains, max-min policies, sampling of ranks."""
