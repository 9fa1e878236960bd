"""`ling doctor`: every known trap of a published checkpoint, each with its fix.

finding.py    what is said           evidence.py  what is looked at, read once
examine.py    the list of checks     weights.py   checks of the data     repair.py  writing the fixes
files.py tensors.py fp8.py rotary.py stretching.py network.py texts.py packed.py    the checks
"""

from ling.checkpoint.doctor.examine import examine
from ling.checkpoint.doctor.finding import SEVERITIES, Finding, Severity
from ling.checkpoint.doctor.repair import mend
from ling.checkpoint.doctor.weights import examine_weights

__all__ = ["SEVERITIES", "Finding", "Severity", "examine", "examine_weights", "mend"]
