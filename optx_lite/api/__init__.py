"""SciPy's signatures: check the arguments, build the problem, call the driver."""
