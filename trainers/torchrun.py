"""torchrun with rank 0's exit code: ``python -m trainers.torchrun --nproc-per-node N -m trainers.job URI``.

torchrun itself exits with 1 whatever its processes' exit codes, and a launcher would retry an impossible job.
"""

import os
import sys
import tempfile
from pathlib import Path

import structlog
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from foldtune.errors import InvalidSettingsError
from foldtune.logs import configure_logs
from foldtune.settings import load_settings
from trainers.engine.ranks import EXIT_CODE_FILE
from trainers.exit_codes import ExitCode

log = structlog.get_logger()


def main(arguments: list[str]) -> ExitCode:
    """Run torchrun with its own ``arguments``; TRY_AGAIN if rank 0 failed without an exit code, for example killed."""
    configure_logs()
    try:
        configure_logs(load_settings().log_level)
    except InvalidSettingsError as error:
        log.error("training not started", error=str(error))  # noqa: TRY400 - for people
        return ExitCode.TRY_AGAIN
    with tempfile.TemporaryDirectory() as folder:
        # Not from torchrun's report, which names the process that it found ended first, and that may be another rank.
        path = Path(folder) / "exit-code"
        os.environ[EXIT_CODE_FILE] = str(path)
        try:
            run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
        except (ChildFailedError, SignalException) as error:
            exit_code = ExitCode(int(path.read_text())) if path.exists() else ExitCode.TRY_AGAIN
            log.error("a rank failed", arguments=arguments, exit_code=exit_code, error=str(error))  # noqa: TRY400 - for people
            return exit_code
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
