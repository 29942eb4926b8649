"""Access to the machine: devices, files, signals, random generators, collectives."""
