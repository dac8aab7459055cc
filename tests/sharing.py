"""How the processes of ``pytest -n`` share the tests out."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_RELEASE = re.compile(r"\[(?:.*-)?(\d+\.\d+\.\d+)(?:-.*)?\]$")

#: Files whose tests have no fixture in common and take long: shared out one by one, at the end.
_ONE_BY_ONE = ("measure/kernels/test_fused_moe.py", "measure/kernels/test_kernels.py")


class ByFixture(LoadScopeScheduling):  # type: ignore[misc] # xdist ships no types
    """Keeps tests with an expensive fixture in common in one process, which makes it only once.

    The largest groups come first, so that what is left at the end is short.
    """

    def _split_scope(self, nodeid: str) -> str:
        """The group of a test: its file, a release of vLLM, the browser, a server or itself."""
        file, _, name = nodeid.partition("::")
        if file.endswith(_ONE_BY_ONE):
            return nodeid
        if "/vllm/" in file and (release := _RELEASE.search(name)):
            kernels = " kernels" if file.endswith("test_provider.py") else ""
            return f"vLLM {release[1]}{kernels}"
        if file.endswith(("test_browser.py", "cli/test_dashboard.py")):
            return "browser"
        return "PostgreSQL" if name.endswith("postgres]") else file
