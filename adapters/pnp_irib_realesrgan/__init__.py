"""Real-ESRGAN for pnp_irib: x4plus, x4plus-anime, animevideov3."""
