"""Students outside a run: export, the pyfunc model, recommendations."""
