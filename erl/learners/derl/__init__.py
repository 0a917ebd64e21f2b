"""DERL: an evolution strategy and a policy gradient improve one policy, and are averaged."""
