"""Where lifetimes are lived: processes of this machine (`local`) and the machines of a Ray cluster
(`ray_cluster`).
"""
