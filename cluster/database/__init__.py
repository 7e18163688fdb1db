"""The queue's database: its tables and their versions, the two kinds of server that keep them, and who may dispatch."""
