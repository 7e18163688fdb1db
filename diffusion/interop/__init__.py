"""Reading and writing of diffusers' scheduler configurations and model folders."""
