"""The only place that imports ray, and mlflow beside serving."""
