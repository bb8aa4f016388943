"""What a fit is worth: covariance, report, bands, intervals, propagation of errors."""
