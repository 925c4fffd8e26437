"""AdamW with a linear warm-up and decay of the learning rate, gradient clipping and loss scaling for float16."""

from collections import defaultdict

import torch

from trainers.errors import NotFiniteError

# Above the usual 2e-5: an agent's logs give a training of some hundred steps, and interpolating the weights towards the
# start (``validation.interpolate_weights``) undoes an overshoot. In one epoch of the demo (two layers), 5e-5, 1e-4 and
# 2e-4 gained 9, 13 and 15 % on true pairs, the last one with a wider spread over the questions. With all layers, 2e-4
# finds .005 more than 1e-4 on one set, and on another loses .036 of validation nDCG in an epoch.
LEARNING_RATE = 1e-4
# Without validation nothing undoes an overshoot (docs/decisions.md).
UNVALIDATED_LEARNING_RATE = 5e-5
WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# A sixteenth of torch's default, with which two of a small model's first ten steps were skipped; a training of some
# hundred steps cannot spare them. With this scale, gradients down to 1e-11 do not underflow.
INITIAL_SCALE = 2.0**12
# What changes in the state of torch's GradScaler: the scale, and the number of steps since it last changed.
_SCALER_STATE = ("scale", "_growth_tracker")


class Optimizer:
    """AdamW whose learning rate warms up linearly to ``peak`` and then decays linearly to 0 after ``steps`` steps.

    With ``float16``, small gradients would underflow in the backward pass, so they start from ``scale(gradient)``. A
    step with non-finite gradients is skipped and halves the scale.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], steps: int, peak: float, *, float16: bool = False) -> None:
        self._parameters, self._steps, self._peak = parameters, steps, peak
        self._completed_steps = 0
        self.learning_rate = 0.0
        # Biases and the scales of norms are not decayed: that would restrict the model without regularizing it.
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, fused=True)
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, INITIAL_SCALE, enabled=float16)

    def scale(self, gradient: torch.Tensor) -> torch.Tensor:
        """The loss's gradient times the scale, to start the backward pass with; ``step`` divides by it again."""
        scaled: torch.Tensor = self._scaler.scale(gradient)
        return scaled

    def step(self) -> bool:
        """Optimizer step, then clear the gradients; false if skipped because gradients were not finite.

        Raises:
            NotFiniteError: a gradient is not finite, and the scale is too small to be the cause.
        """
        self._scaler.unscale_(self._optimizer)
        finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)))
        if not finite and self._scaler.get_scale() <= 1:
            raise NotFiniteError("a gradient")
        self.learning_rate = self._scheduled_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._completed_steps += 1
        return finite

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters, moments and scale by name."""
        state = {f"parameter.{index}": parameter.data for index, parameter in enumerate(self._parameters)}
        for index, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        scaler = self._scaler.state_dict()
        return state | {f"scaler.{name}": torch.tensor(scaler[name]) for name in _SCALER_STATE if name in scaler}

    def load_state_dict(self, state: dict[str, torch.Tensor], completed_steps: int) -> None:
        """Continue from a ``state_dict`` of ``completed_steps`` steps, also from one of another dtype."""
        for index, parameter in enumerate(self._parameters):
            parameter.data.copy_(state[f"parameter.{index}"])
        moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, position, name = key.split(".")
                moments[int(position)][name] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        # A state from a machine with another dtype has no scale; the initial one stays.
        scaler = {name: state[key].item() for name in _SCALER_STATE if (key := f"scaler.{name}") in state}
        self._scaler.load_state_dict({**self._scaler.state_dict(), **scaler})
        self._completed_steps = completed_steps

    def _scheduled_rate(self) -> float:
        """The learning rate of the next step."""
        warm_up, done = max(1, round(WARM_UP_SHARE * self._steps)), self._completed_steps
        return self._peak * min((done + 1) / warm_up, (self._steps - done) / max(1, self._steps - warm_up), 1.0)
