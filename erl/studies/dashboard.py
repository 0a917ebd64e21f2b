"""The study database in a browser, by optuna-dashboard."""

from erl.cli import Sink
from erl.errors import UserError
from erl.studies.flags import DashboardConfig
from erl.studies.storage import open_storage, shown


def dashboard(config: DashboardConfig, sink: Sink) -> int:
    """Serve a study database until Ctrl-C.

    Raises:
        UserError: optuna-dashboard is not installed, the storage cannot be opened, or the address
            is in use.
    """
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise UserError('optuna-dashboard is not installed: pip install "erl[dashboard]"') from None
    storage = open_storage(config.storage)
    sink.line(f"{shown(config.storage)} at http://{config.host}:{config.port}/ (Ctrl-C ends it)")
    try:
        run_server(storage, config.host, config.port)
    except OSError as e:
        raise UserError(
            f"{config.host}:{config.port} cannot be used: {e.strerror or e}; choose another --port"
        ) from e
    except KeyboardInterrupt:
        pass
    return 0
