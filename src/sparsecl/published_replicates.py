"""What `results/<study>/` holds of a study: which replicates, and the learning rates chosen for them (paper, Data availability).

A published replicate counts only under exactly the settings it was made with. Apart from `sparsecl.tables`, so that a change
of tables or metrics trains nothing again.
"""

import pandas as pd

from sparsecl.config import VALIDATION, Study
from sparsecl.records import read_json
from sparsecl.tree import published


def is_published(study: Study, replicate: int | str) -> bool:
    """Whether the committed tables hold this replicate under exactly these settings."""
    path = published(study.name) / "published.json"
    if not path.is_file():
        return False
    content = read_json(path)
    return content["settings_sha256"] == study.digest() and replicate in content["replicates"]


def published_learning_rates(study: Study) -> dict[str, float] | None:
    """The learning rate of every method as the published validation replicate chose it; None where it is not published."""
    if not is_published(study, VALIDATION):
        return None
    swept = pd.read_csv(published(study.name) / "learning_rate.csv")
    return swept[swept["chosen"].astype(bool)].groupby("method")["learning_rate"].first().to_dict()
