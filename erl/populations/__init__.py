"""What an evolution inside a lifetime tries next.

One distribution or population a file, on flat vectors, in NumPy alone. No network, no environment
and no budget belongs here.
"""
