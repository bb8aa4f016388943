"""How well and how fast: ``make demo``, ``make bench``, and the problems both are run on."""
