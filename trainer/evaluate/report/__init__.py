"""The two-view report of an evaluation, as one HTML file and as a picture."""
