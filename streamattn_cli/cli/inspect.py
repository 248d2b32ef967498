"""`streamattn inspect`: what is in this input."""
def inspect() -> None:
    """x"""
