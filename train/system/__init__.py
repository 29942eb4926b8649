"""What the machine provides: devices, files, signals, random generators, collectives."""
