"""From the score of an image to a verdict, normal or abnormal, by a threshold (Mukesh et al. 2024).

A threshold comes from healthy images alone, or a user gives it; none is found with the label of a lesion.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rayad import catalog
from rayad.errors import OptionError
from rayad.scoring.calibrate import Calibration
from rayad.terminal import shortened

Kind = Literal["sd", "quantile", "fpr", "score"]
NORMAL, ABNORMAL = "normal", "abnormal"


@dataclass(frozen=True)
class Rule:
    """When an image is abnormal: its score lies above a threshold."""

    kind: Kind
    """Origin of the threshold: the mean of healthy images' scores plus so many standard deviations; a quantile of
    them; a wanted share of false alarms, by the p-value; or a score that a user gives."""
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"

    @property
    def sentence(self) -> str:
        """The rule in words."""
        return {
            "sd": f"above the mean of healthy images plus {self.value:g} standard deviations",
            "quantile": f"above {self.value:.4g} of healthy images",
            "fpr": f"as high as in at most {self.value:.4g} of healthy images (p at most {self.value:g})",
            "score": f"above {self.value:g}, which was given",
        }[self.kind]

    def threshold(self, calibration: Calibration) -> float:
        """The score above which an image is abnormal.

        Raises:
            OptionError: so few healthy patients cannot give so small a share of false alarms.
        """
        scores, weights = calibration.image_scores, calibration.image_weights
        if self.kind == "score":
            return self.value
        if self.kind == "quantile":
            return float(np.quantile(scores, self.value))
        if self.kind == "sd":
            mean = float(np.average(scores, weights=weights))
            return mean + self.value * float(np.sqrt(np.average((scores - mean) ** 2, weights=weights)))
        if calibration.floor > self.value:
            raise OptionError(
                f"{self} needs {int(np.ceil(1 / self.value)) - 1} healthy patients or more, the detector is calibrated "
                f"on {calibration.patients}"
            )
        higher = np.append(np.cumsum(weights[::-1])[::-1], 0.0)[1:]  # the weight of what scores higher than each
        return float(scores[np.argmax((1 + higher) / (calibration.patients + 1) <= self.value)])

    def verdict(self, score: float, calibration: Calibration) -> str:
        """normal or abnormal, for an image's score."""
        return ABNORMAL if score > self.threshold(calibration) else NORMAL


def parse(text: str) -> Rule:
    """The rule that a text such as sd=3, quantile=0.95, fpr=0.05 or score=12.5 means; OptionError if it means none."""
    word, _, value = text.partition("=")
    kind: Kind | None = next((kind for kind in get_args(Kind) if kind == word), None)
    if kind is None:
        raise OptionError(f"a rule is sd=K, quantile=Q, fpr=RATE or score=S, not {shortened(text)}")
    number = catalog.parsed("the rule", kind, float, value)
    if kind in ("quantile", "fpr") and not 0 < number < 1:
        raise OptionError(f"{kind} of a rule is between 0 and 1, not {value}")
    return Rule(kind, number)
