"""Trust regions for nonlinear least squares."""
