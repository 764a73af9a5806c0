"""The log of an arm from what was kept of its responses: what an arm that is matched to it goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from typing_extensions import override

from tl_l2norm.interventions.log import Log
from tl_l2norm.interventions.rule import Rule


class KeptLog(Log):
    """What interventions decided on responses of an earlier run, numbered as the sequences of the next one."""

    def __init__(
        self,
        interventions: Sequence[Rule],
        *,
        entries: Sequence[Mapping[str, Any]] = (),
        seeds: Sequence[int] = (),
        prompt_lens: Sequence[int] = (),
        sink_ratio: float | None = None,
    ) -> None:
        """Read the journal's entries, one for each sequence; those of no response without any."""
        super().__init__(interventions, sink_ratio=sink_ratio)
        self._kept = tuple(entries)
        self.keys, self.prompt_lens = dict(enumerate(seeds)), dict(enumerate(prompt_lens))

    @override
    def events(self) -> pd.DataFrame:
        return self._events

    @cached_property
    def _events(self) -> pd.DataFrame:
        columns = ["intervention", "decision", "fired", "layer", "position", "reruns"]
        rows = [[number, *event] for number, entry in enumerate(self._kept) for event in entry["events"]]
        frame = pd.DataFrame(rows, columns=["sequence", *columns])
        whole = frame.assign(**dict.fromkeys(("threshold", "l2_norm_before", "l2_norm_after"), np.nan))
        types = {"sequence": int, "layer": int, "position": int, "fired": bool, "reruns": float}
        return whole.astype(types).sort_values(["sequence", "position", "layer"], kind="stable", ignore_index=True)

    @override
    def live(self, index: int = 0) -> dict[tuple[int, int], int]:
        return {(number, layer): n for number, entry in enumerate(self._kept) for layer, n in entry["live"][index]}

    @override
    def read(self) -> NDArray[np.int64]:
        """All tokens that were read back: all but a response's last."""
        rows = [
            (number, self.prompt_lens[number] + at, token)
            for number, entry in enumerate(self._kept)
            for at, token in enumerate(entry["tokens"][:-1])
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 3).T
