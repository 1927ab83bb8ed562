"""Reports on runs: one HTML file that opens offline, and its figures as PNG.

The package can be called: `nanolm.report("outputs", "report.html")` writes a report, as nanolm.api.analysis describes.
"""

from nanolm.callable_packages import make_callable

make_callable(__name__, "nanolm.api.analysis")
