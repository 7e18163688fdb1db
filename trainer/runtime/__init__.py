"""The machine that a process runs on: Ray, network interfaces, devices, imports, terminals."""
