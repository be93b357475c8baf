"""The command line: parsing and printing, no logic. One file a command or a few that belong together."""

from __future__ import annotations

import os
import sys
import warnings

from cyclopts import CycloptsError

from unmemorize.cli import (  # noqa: F401
    attack,
    audit,
    bench,
    check,
    data,
    detect,
    explain,
    export,
    generate,
    inspect,
    locality,
    locate,
    methods,
    mitigate,
    reproduce,
    testbed,
    triggers,
)
from unmemorize.cli.app import app
from unmemorize.cli.mistakes import explained, refusal, require_text
from unmemorize.cli.terminal import INTERRUPTED, complain, errors, open_streams, say
from unmemorize.core.errors import Unfinished, UnmemorizeError


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns of torchvision, which nothing here needs
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # or it prints what it cut off an overlong prompt
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine manyfold
    open_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for those who write code with them
    try:
        require_text(sys.argv[1:])
        app(_typed(), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        complain(explained(error))
        sys.exit(2)
    except Unfinished as state:
        say(str(state), to=errors)
    except UnmemorizeError as error:
        complain(str(error))
        sys.exit(2)
    except OSError as error:
        complain(refusal(error))
        sys.exit(2)
    except RuntimeError as error:
        from unmemorize.core.batches import OUT_OF_MEMORY, is_out_of_memory  # by now torch is there

        if not is_out_of_memory(error):
            raise
        complain(OUT_OF_MEMORY)
        sys.exit(2)
    except KeyboardInterrupt:  # while something was loaded or written; `working` says what is kept of work
        say("stopped: type the same command again", to=errors, style="yellow")
        sys.exit(INTERRUPTED)


def _typed() -> list[str]:
    """What was typed: a dash alone, which the parser would take for an option, is the value of the one before it."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if word == "-" and words and words[-1].startswith("--"):
            words[-1] += "=-"
        else:
            words.append(word)
    return words
