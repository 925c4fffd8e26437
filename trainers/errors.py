"""Errors of a training job. The class docstring is the message; the arguments are appended as details.

They are classified here, once: ``ImpossibleJobError`` and below are permanent, all others may pass when the same job is
started again. The launcher learns the class from the exit code.
"""

from foldtune.errors import FoldtuneError
from trainers.exit_codes import ExitCode


class TrainerError(FoldtuneError):
    """The training job failed:"""

    exit_code = ExitCode.TRY_AGAIN

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed when it is started again."""
        return self.exit_code is ExitCode.TRY_AGAIN


class ImpossibleJobError(TrainerError):
    """The training job can never succeed:"""

    exit_code = ExitCode.IMPOSSIBLE


class BadJobError(ImpossibleJobError):
    """The training job is missing or malformed:"""


class BadSnapshotError(ImpossibleJobError):
    """The snapshot is incomplete, altered or malformed:"""


class UnknownQuestionError(TrainerError):
    """The snapshot has no example of this question (question, most similar questions):"""


class TooLittleDataError(ImpossibleJobError):
    """The snapshot has too little data for training and evaluation:"""


class BadModelError(ImpossibleJobError):
    """base_model cannot be trained:"""


class ModelRefusedError(BadModelError):
    """base_model is not allowed:"""


class KnobError(ImpossibleJobError):
    """A knob does not fit the model:"""


class SettingError(ImpossibleJobError):
    """A setting of the trainer cannot be used:"""


class NotFiniteError(ImpossibleJobError):
    """The model computes infinite or undefined values:"""


class InterruptedTrainingError(TrainerError):
    """The training was interrupted:"""


class InfrastructureFailedError(TrainerError):
    """Object store, Kafka or network failed; run the job again, it goes on from its checkpoint:"""


class RankLostError(TrainerError):
    """Another rank of this training ended or does not respond:"""


class OnnxExportError(TrainerError):
    """ONNX export failed:"""
