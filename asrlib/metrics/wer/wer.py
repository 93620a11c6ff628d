"""WER as an `evaluate` metric that needs no Hub; the counting is `asrlib.scoring`'s, hence jiwer's."""

import datasets
import evaluate

from asrlib.scoring import score

TEXT = datasets.Value("string")


class Metric(evaluate.Metric):
    """``compute(references=[...], predictions=[...])`` returns the corpus WER as a fraction."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="WER of a corpus, as a fraction.",
            citation="",
            inputs_description="references and predictions: lists of strings",
            features=datasets.Features({"predictions": TEXT, "references": TEXT}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"wer": score(references, predictions).wer}
