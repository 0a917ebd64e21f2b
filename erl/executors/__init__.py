"""Where lifetimes are lived: processes of this machine (`local`) and the machines of a Ray cluster
(`ray_cluster`). Workers inside a lifetime, on a virtual clock, are in `lockstep`.
"""
