"""The model registry: detectors to bytes and back, versions, the champion alias, a cache."""
