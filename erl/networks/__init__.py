"""Networks of many members side by side, with hand-written gradients and Adam.

Two implementations stand here: NumPy for cohorts of small networks (`cohort_networks`), PyTorch for
wide ones and for GPUs (`perceptrons`, `trained`, `products`, `captured`). No environment, no
training loop and no learner's settings belong here.
"""
