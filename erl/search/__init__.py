"""What the outer evolution proposes: search spaces, samplers, asynchronous CMA-ES, pruning.

Nothing here opens a storage or trains an agent.
"""
