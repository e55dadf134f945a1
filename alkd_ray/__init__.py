"""alkd_ray: decide which sessions are worth an LLM's ranking, buy them under a cap, distil them."""

__version__ = "0.1.0"
