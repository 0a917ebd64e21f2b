"""The study database: storages and their retries, leases, studies, records as data frames, and the
command line on them.
"""

DEFAULT_STORAGE = "sqlite:///studies.db"
