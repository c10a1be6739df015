"""Methods, task families and experiments that live outside of the package: modules that register them.

A module is named by ``--plugins=my.module,other``, or by an installed package as an entry point of the group
``tvjax.plugins``. The module is imported before the config is read. It calls `tvjax.methods.register`,
`tvjax.tasks.register` or `tvjax.experiments.register`.
"""

import importlib
import importlib.metadata

from tvjax.errors import UserError

GROUP = "tvjax.plugins"


def load(names: str = "") -> None:
    """Import the modules that `names` lists, with commas between, and the modules of entry points.

    Raises `UserError` for a module that is not there or that fails.
    """
    installed = [
        (f"the entry point {point.name}", point.value) for point in importlib.metadata.entry_points(group=GROUP)
    ]
    for source, name in [*installed, *(("--plugins", name.strip()) for name in names.split(",") if name.strip())]:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{source}: given {name!r}, which raised {what}; accepted: modules that can be imported"
            ) from None
