"""How a step goes down along its gradients: AdamW, with a rate that rises and falls."""

from collections import defaultdict

import torch

from trainers.errors import NotFiniteError

# Above the usual 2e-5: an agent's logs give a training of some hundred steps, and interpolating the weights towards the
# start (``validation.interpolate_weights``) undoes an overshoot. In one epoch of the demo (two layers), 5e-5, 1e-4 and
# 2e-4 gained 9, 13 and 15 % on true pairs, the last one with a wider spread over the questions. With all layers, 2e-4
# finds .005 more than 1e-4 on one set, and on another loses .036 of validation nDCG in an epoch.
LEARNING_RATE = 1e-4
# Where there is no validation to go back by (docs/decisions.md).
UNVALIDATED_LEARNING_RATE = 5e-5
WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# A sixteenth of what is usual: with that, two of a small model's first ten steps were not taken, and a training of some
# hundred steps has none to lose. Gradients down to 1e-11 are still numbers.
FIRST_SCALE = 2.0**12
# What changes in the state of torch's GradScaler: the scale, and the good steps since its last change.
_SCALER = ("scale", "_growth_tracker")


class Optimizer:
    """AdamW with a linear warm-up to the rate ``peak`` and a linear way down.

    With ``float16``, small gradients would vanish on their way through the model, so ``scaled`` makes them larger. A
    step whose gradients are then no numbers is not taken, and halves the scale.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], steps: int, peak: float, *, float16: bool = False) -> None:
        self._parameters, self._steps, self._peak, self._done = parameters, steps, peak, 0
        self.rate = 0.0
        # Biases and the scales of norms are not decayed: they have no surplus of freedom to take back.
        groups = [
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, fused=True)
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, FIRST_SCALE, enabled=float16)

    def scaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient at the embeddings as it is to go backward through the model."""
        found: torch.Tensor = self._scaler.scale(gradient)
        return found

    def step(self) -> bool:
        """Go down along the gradients, which are then used up; false if the step was not taken.

        Raises:
            NotFiniteError: a gradient is no number, and a smaller scale would not help.
        """
        self._scaler.unscale_(self._optimizer)
        finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)))
        if not finite and self._scaler.get_scale() <= 1:
            raise NotFiniteError("a gradient")
        warm_up = max(1, round(WARM_UP_SHARE * self._steps))
        scale = min((self._done + 1) / warm_up, (self._steps - self._done) / max(1, self._steps - warm_up), 1.0)
        self.rate = self._peak * scale
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1
        return finite

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a later ``go_on`` needs, by name."""
        found = {f"parameter.{number}": one.data for number, one in enumerate(self._parameters)}
        for number, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        scaler = self._scaler.state_dict()
        return found | {f"scaler.{name}": torch.tensor(scaler[name]) for name in _SCALER if name in scaler}

    def go_on(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Continue after ``done`` steps."""
        for number, one in enumerate(self._parameters):
            one.data.copy_(tensors[f"parameter.{number}"])
        state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, place, part = name.split(".")
                state[int(place)][part] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        # Nothing, if the training comes from a machine that computes in another format.
        changed = {name: tensors[key].item() for name in _SCALER if (key := f"scaler.{name}") in tensors}
        self._scaler.load_state_dict({**self._scaler.state_dict(), **changed})
        self._done = done
