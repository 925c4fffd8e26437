"""torchrun that ends with rank 0's exit code: ``python -m trainers.torchrun --nproc-per-node N -m trainers.job URI``.

torchrun itself ends with 1 however its processes ended, and a launcher would try an impossible job again and again.
"""

import os
import sys
import tempfile
from pathlib import Path

import structlog
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from trainers.engine.ranks import EXIT_CODE_FILE
from trainers.exit_codes import ExitCode

log = structlog.get_logger()


def main(arguments: list[str]) -> ExitCode:
    """Run torchrun with its own ``arguments``; without a word of rank 0 (killed, on another machine), try again."""
    with tempfile.TemporaryDirectory() as folder:
        # Not from torchrun's report: it names those that it found ended first, which may be others than rank 0.
        path = Path(folder) / "exit-code"
        os.environ[EXIT_CODE_FILE] = str(path)
        try:
            run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
        except (ChildFailedError, SignalException) as error:
            log.error("not all processes ended well", reason=str(error))  # noqa: TRY400 - for people
            return ExitCode(int(path.read_text())) if path.exists() else ExitCode.TRY_AGAIN
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
