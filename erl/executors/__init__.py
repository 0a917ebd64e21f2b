"""Functions run elsewhere: in processes of this machine (`local`) or on the machines of a Ray
cluster (`ray_cluster`), and the board on which they report while they run. Workers inside a
lifetime are in `virtual_clock`, which computes all in one process, and in `concurrent_workers`.

An executor knows nothing of what it runs: no lifetime, no learner, no world. `jobs` has what all
executors share, `machines` says which machines and cores there are.
"""
