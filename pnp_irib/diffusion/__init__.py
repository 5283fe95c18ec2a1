"""What restorers on Stable Diffusion share. Written against the classes of diffusers, which load when used."""
