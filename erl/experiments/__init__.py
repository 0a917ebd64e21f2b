"""What the scripts do: evolve, compare, train one learner; the trial loop and the agents of a
test.
"""
