"""Running a lifetime: from its specification (`worlds.specification`) to the record of what an
agent reached (`record`), by training and evaluating it (`living`); its saved model (`models`),
the evaluation of that (`evaluating`) and its film (`film`).

No optimiser and no database belongs here.
"""
