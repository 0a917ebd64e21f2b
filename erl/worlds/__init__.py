"""What an agent lives in, and what a lifetime is before it runs.

Tasks and their spaces, sets of tasks with reference returns, reservoirs and the context they give,
environments stepped in lockstep, the ledger that counts every step, specifications and seeds, and
the evaluation of a policy. No learner, no network and no database belongs here.
"""
