"""What can go wrong in a training job. The class docstring is the message; the arguments say what exactly.

Two kinds are told apart, once and here: a job that can never succeed as it is, and one that may succeed when it is
started again. The exit code is how a launcher hears of it.
"""

from foldtune.errors import FoldtuneError
from trainers.exit_codes import ExitCode


class TrainerError(FoldtuneError):
    """The training did not end as asked."""

    exit_code = ExitCode.TRY_AGAIN

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed when it is started again."""
        return self.exit_code is ExitCode.TRY_AGAIN


class ImpossibleJobError(TrainerError):
    """The job can never succeed:"""

    exit_code = ExitCode.IMPOSSIBLE


class BadJobError(ImpossibleJobError):
    """The training job is not readable:"""


class BadSnapshotError(ImpossibleJobError):
    """The snapshot is not what the job says:"""


class UnknownQuestionError(TrainerError):
    """The snapshot has no example of this question; the most alike are, behind it:"""


class TooLittleDataError(ImpossibleJobError):
    """The snapshot holds too little to train and to measure on:"""


class BadModelError(ImpossibleJobError):
    """base_model cannot be trained:"""


class ModelRefusedError(BadModelError):
    """base_model may not be read:"""


class KnobError(ImpossibleJobError):
    """A knob does not fit the model:"""


class NotFiniteError(ImpossibleJobError):
    """What the model computes became infinite or undefined:"""


class InterruptedTrainingError(TrainerError):
    """The training was interrupted:"""


class InfrastructureFailedError(TrainerError):
    """Object store, Kafka or network failed:"""


class RankLostError(TrainerError):
    """Another process of this training is gone or does not answer:"""


class OnnxExportError(TrainerError):
    """The model was not written as ONNX:"""
