"""Living: from a specification to the record of what an agent reached, and the film of a saved
agent.

No optimiser and no database belongs here.
"""
