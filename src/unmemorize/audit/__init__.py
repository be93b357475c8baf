"""The main job: score every prompt, generate, compare with the training pictures, explain, report."""

from unmemorize.audit.forecast import Forecast, forecast
from unmemorize.audit.run import run_audit
from unmemorize.core.specs import AuditSpec

__all__ = ["AuditSpec", "Forecast", "forecast", "run_audit"]
