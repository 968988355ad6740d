"""From recordings to bits: samples, sensitivity, allocation, and the published methods."""
