"""The commands `adaptive generate`, `bench` and `calibrate`."""
