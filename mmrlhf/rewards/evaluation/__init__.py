"""How far a reward can be trusted: agreement, ceilings, calibration, sensitivity, drift, and their pages."""
