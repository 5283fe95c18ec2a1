"""The first stage of DiffBIR: networks that take noise, blur and blocks away before the generative prior adds detail."""
