"""Images to scores: dense scoring, calibration, the detector bundle."""
