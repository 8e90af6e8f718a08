"""How the weights of a network are found."""
