"""What any process of ours needs of the machine it runs on: Ray, network interfaces, devices, imports, terminals."""
