"""The folder of a run: its files, their reading and writing, and the question whether it is the same run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from istd.files import read_json, read_settings, write_json
from istd.runs.identity import first_difference, is_sealed, sealed
from istd.runs.metrics import Metrics
from istd.settings import Settings
from istd.training.legacy import settings_of_run

FILES = ("checkpoint.pt", "student.safetensors", "metrics.json", "config.json", "run.json", "report.png", "log.txt")
ASIDE = ".replaced"

log = logging.getLogger("istd")


class RunFolder:
    """What lies on disk of one run: its files, and which run they are of.

    `checkpoint.pt`, `student.safetensors`, `metrics.json`, `config.json` (settings), `run.json` (identity and flags),
    `report.png`, `log.txt`. Every file but the log is written atomically.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)
        self.checkpoint, self.student, self.metrics, self.settings, self.about, self.report, self.log = (
            self.out / name for name in FILES
        )

    def holds_run(self) -> bool:
        """Whether it holds a run, finished or not."""
        return any(path.exists() for path in (self.checkpoint, self.metrics, self.settings))

    def begin(self, settings: Settings, identity: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
        """Write which run this is."""
        write_json(self.settings, settings.as_dict())
        write_json(self.about, {"identity": dict(identity), "flags": dict(flags)})

    def write_metrics(self, metrics: Metrics) -> Metrics:
        """Write results with a digest of themselves, by which torn and edited files are found; returns both."""
        content = sealed(metrics)
        write_json(self.metrics, content)
        return content  # type: ignore[return-value]

    def read_metrics(self) -> Metrics:
        """The results of a finished run.

        Raises:
            ValueError: if they are torn.
            OSError: if there are none.
        """
        return read_json(self.metrics)  # type: ignore[return-value]

    def read_settings(self) -> Settings:
        """The settings of the run, of this release or an earlier one.

        Raises:
            ValueError: if the file is torn, or holds what no setting can be.
            OSError: if there is none.
        """
        return settings_of_run(read_settings(self.settings))

    def state(self, settings: Settings, identity: Mapping[str, Any]) -> str:
        """`empty`, `finished`, `stopped` (to be resumed), or `other`: another run, or none that can be made out.

        A run is known by its settings and by its data's content. Results of another number of threads are results; a
        stopped run is only resumed with its own. A torn or edited `metrics.json` is made again from its checkpoint.
        """
        if not self.holds_run():
            return "other" if self.out.exists() and RunFolder(self.out / ASIDE).holds_run() else "empty"
        try:
            if self.read_settings() != settings:
                return "other"
            found = read_json(self.about).get("identity")
        except (OSError, ValueError):
            return "other"
        if not isinstance(found, dict):
            return "other"
        if first_difference({**found, "threads": None}, {**identity, "threads": None}) is not None:
            return "other"
        if self._whole():
            return "finished"
        return "stopped" if self.checkpoint.is_file() and found == identity else "other"

    def _whole(self) -> bool:
        try:
            return is_sealed(read_json(self.metrics))
        except (OSError, ValueError):
            return False

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Send the log of this package to the run's file, too."""
        handler = logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()
