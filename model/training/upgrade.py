"""Convert a bundle whose card has an earlier format."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.bundle import CARD_FILE, open_bundle, update_bundle, verify_files
from model.card import CONVERTIBLE_FORMATS, FORMAT_VERSION, ModelCard
from model.errors import CardError
from model.training.calibrate import THRESHOLDS
from model.training.report.readme import NOTES_FILE, README_FILE, readme, readme_of

_MISTAKE = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| ([\d.]+)% \|$", re.MULTILINE)


def upgrade(folder: Path) -> bool:
    """Convert the card of a bundle to the current format, and generate its README.md from it.

    The files that the card lists are verified and stay as they are, and so do the predictions. A README.md of format 4
    ends with sections that were written by hand: they become NOTES.md.

    Returns:
        Whether the bundle had an earlier format. If not, only README.md is generated again.

    Raises:
        CardError: the card is missing, invalid, or has a format that cannot be converted.
        IntegrityError: a file is missing or has another hash.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    path = folder / CARD_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        convertible = fields["format_version"] in CONVERTIBLE_FORMATS
    except (OSError, ValueError, LookupError, TypeError):
        convertible = False  # open_bundle reports what is wrong
    if not convertible:
        card = open_bundle(folder).card
        update_bundle(folder, {README_FILE: readme_of(folder, card)}, card)
        return False
    text = _read_text(folder / README_FILE)
    card = _converted(fields, text, path)
    verify_files(folder, card)
    notes = text.partition("\n```\n")[2].strip()
    if notes and not (folder / NOTES_FILE).exists():
        page = f"# Notes on {card.name}\n\n{notes}\n"
        files = {NOTES_FILE: page.encode(), README_FILE: readme(card, notes=True, folder=folder).encode()}
    else:
        files = {README_FILE: readme_of(folder, card)}
    update_bundle(folder, files, card)
    return True


def _converted(fields: dict[str, Any], text: str, path: Path) -> ModelCard:
    """The card of format 4 in the current format.

    Format 4 always had constants for one view. Its card lacked the mistakes, but its README.md had them.
    """
    try:
        labels = set(fields["labels"])
        fields["format_version"] = FORMAT_VERSION
        fields["calibration"]["views"] = 1
        old = fields["out_of_distribution"]
        fields["out_of_distribution"] = {
            "score": {name: old[name] for name in ("method", "feature_mean", "class_directions")},
            "quantiles": old["quantiles"],
            "least_contrast": 0.0,
            "least_coarseness": 0.0,
            "thresholds": {"accepted": old["threshold"], "uncertain": min(old["threshold"], THRESHOLDS.uncertain)},
            "views": 1,
            "pictures": old["pictures"],
        }
        fields["metrics"]["other"] = {}
        fields["metrics"]["mistakes"] = [
            {"image": int(image), "label": label, "predicted": predicted, "probability": round(float(percent) / 100, 6)}
            for image, label, predicted, percent in _MISTAKE.findall(text)
            if {label, predicted} <= labels
        ]
        return ModelCard.model_validate_json(json.dumps(fields))
    except (LookupError, TypeError, ValidationError) as error:
        raise CardError(f"{path} is not a valid card of format 4: export the bundle again") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
