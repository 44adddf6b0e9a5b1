"""How well anomalies are told from normal rows, ours beside other detectors: `make bench-detection`."""
