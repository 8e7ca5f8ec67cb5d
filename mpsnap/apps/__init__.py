"""Short example programs; they import the public names of `mpsnap` alone."""
