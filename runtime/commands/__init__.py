"""The commands `adaptive generate`, `bench` and `calibrate`. Top-level imports are light, so that `--help` is quick."""
