"""The stages of an audit, in order. Each reads what is in the run directory and writes its own table there."""

from unmemorize.stages.attack_mitigated import ATTACK
from unmemorize.stages.calibrate import CALIBRATE
from unmemorize.stages.detect import DETECT
from unmemorize.stages.explain import EXPLAIN
from unmemorize.stages.held_out import HELD_OUT
from unmemorize.stages.mitigate import MITIGATE
from unmemorize.stages.pictures import GENERATE
from unmemorize.stages.regions import REGIONS
from unmemorize.stages.verify import VERIFY

STAGES = (DETECT, CALIBRATE, GENERATE, VERIFY, HELD_OUT, EXPLAIN, REGIONS, MITIGATE, ATTACK)
