"""digits: a Flower app as anybody would write it."""
