"""ERL-Re² (Li et al., ICLR 2023): a population and a TD3 agent on one shared state
representation.
"""
