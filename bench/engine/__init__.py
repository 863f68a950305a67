"""Programs that check what the engine promises on the real model: ``python -m bench.engine``."""
