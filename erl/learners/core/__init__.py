"""What learners share: replay, episodes, checkpoints, telemetry, settings, and export to
Stable-Baselines3.
"""
