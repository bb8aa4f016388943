"""Test problems of the benchmarks: functions, starts and the answers known for them."""
