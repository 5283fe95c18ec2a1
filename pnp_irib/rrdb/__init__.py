"""The network of residual-in-residual dense blocks that several restorers share, fast on CPUs and in little memory."""
