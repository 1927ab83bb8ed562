"""From the words on the command line to a Config.

Hydra composes; what it reports one at a time is gathered here, with the nearest valid name beside each mistake.
"""

# ruff: noqa: F401
from nanolm.compose.hydra_api import CONFIG_NAME, choices_of, config_folder
from nanolm.compose.line import Bases, ComposedJob, Line, compose_config, compose_jobs, compose_line, hidden_options
from nanolm.compose.overrides import FAIL_FAST, HYDRA_FAIL_FAST, parse, quoted
from nanolm.compose.plugins import import_plugins, register_schemas
from nanolm.compose.resume import continue_run
from nanolm.compose.typed import as_hydra_reads
