"""Proximal Policy Optimization for many agents side by side."""
