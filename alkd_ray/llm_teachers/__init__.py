"""Contract of the room: an LLM teacher answers chat requests."""
