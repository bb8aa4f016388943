"""JAX's control flow and serialisation, as everything above needs them."""
